"""Reloads of a server: new sessions have the new settings, existing ones keep the old settings."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.ports import free_ports
from support.server import running, serve, until

from smtpd_fork import Config, Route, SmtpdForkError
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from support.tls import Certificates

    from smtpd_fork import Server


class Remembers(Discard):
    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = asyncio.Event()

    async def handle_EHLO(
        self, server: Any, session: Any, envelope: Any, name: str, replies: list[str]
    ) -> list[str]:
        session.host_name = name
        return [*replies[:-1], f"250-{self.name}", replies[-1]]

    async def close(self) -> None:
        self.closed.set()


def config_of(server: Server, **changes: Any) -> Config:
    return Config.build({"listen": ["127.0.0.1:0"], "max_from_ip": 0, **changes})


async def test_new_sessions_use_the_new_handler_and_the_old_one_closes_with_its_last() -> None:
    old, new = Remembers("OLD"), Remembers("NEW")
    async with serve(old) as server:
        inside = await Client.to(server.addresses[0])
        await inside.reply()
        await server.reload(handler=new)
        assert "OLD" in (await inside.say("EHLO x")).text
        async with await Client.to(server.addresses[0]) as other:
            await other.reply()
            assert "NEW" in (await other.say("EHLO x")).text
        assert not old.closed.is_set()
        assert (await inside.deliver("Subject: x\r\n\r\nx\r\n")).code == 250
        await inside.close()
        async with asyncio.timeout(20):
            await old.closed.wait()
        assert not new.closed.is_set()
    assert new.closed.is_set()


async def test_a_stop_closes_a_replaced_handler_that_still_has_sessions() -> None:
    old = Remembers("OLD")
    async with serve(old) as server:
        inside = await Client.to(server.addresses[0])
        await inside.reply()
        await server.reload(handler=Remembers("NEW"))
    assert old.closed.is_set()
    await inside.close()


class FailsToClose(Remembers):
    """A handler whose close() raises or hangs."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__("OLD")
        self._error = error

    async def close(self) -> None:
        self.closed.set()
        if self._error is not None:
            raise self._error
        await asyncio.Event().wait()


@pytest.mark.parametrize("error", [None, RuntimeError("no")])
@pytest.mark.parametrize("replaced", [True, False])
async def test_all_handlers_are_closed_if_one_fails_to_close_and_no_task_is_left(
    error: Exception | None, replaced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpd_fork.server.handler_chains.CLOSE_SECONDS", 0.05)
    before = asyncio.all_tasks()
    old, behind, new = FailsToClose(error), Remembers("OLD"), Remembers("NEW")
    async with serve([old, Route(behind, copy=True)]) as server:
        if replaced:
            await server.reload(handler=new)
            async with asyncio.timeout(20):
                await old.closed.wait()
    assert behind.closed.is_set()
    assert new.closed.is_set() == replaced
    assert asyncio.all_tasks() <= before


async def test_a_kept_listener_loses_no_client_and_a_closed_one_answers_421() -> None:
    async with serve(Discard(), listen=["127.0.0.1:0"]) as server:
        kept = server.addresses[0]
        port = free_ports(1, "127.0.0.3")[0]
        await server.reload(config_of(server, listen=["127.0.0.1:0", f"127.0.0.3:{port}"]))
        assert server.addresses[0] == kept
        assert server.addresses[1] == ("127.0.0.3", port)
        server.gate.pause()
        waiting = [await Client.to(address) for address in server.addresses]
        inside = server.gate.count
        await server.reload(config_of(server))
        assert server.addresses == [kept]
        assert (await waiting[1].reply()).code == 421
        server.gate.resume()
        assert (await waiting[0].reply()).code == 220
        assert inside == 0
        for client in waiting:
            await client.close()


async def test_sessions_of_a_closed_listener_continue() -> None:
    async with serve(Discard()) as server:
        port = free_ports(1, "127.0.0.3")[0]
        both = ["127.0.0.1:0", f"127.0.0.3:{port}"]
        await server.reload(config_of(server, listen=both))
        async with await Client.to(("127.0.0.3", port)) as client:
            assert (await client.greet()).code == 250
            await server.reload(config_of(server))
            assert server.audit() == []
            assert (await client.deliver("Subject: x\r\n\r\nx\r\n")).code == 250
        await until(lambda: server.gate.count == 0)


async def test_clients_in_the_greet_pause_stay_in_the_previous_one() -> None:
    async with serve(Discard(), greet_pause=0.3) as server:
        first = await Client.to(server.addresses[0])
        await until(lambda: server.gate.count == 1)
        await server.reload(config_of(server, greet_pause="4m"))
        second = await Client.to(server.addresses[0])
        await until(lambda: server.gate.count == 2)
        assert server.audit() == []
        assert (await first.reply()).code == 220
        await server.reload(config_of(server))
        async with await Client.to(server.addresses[0]) as third:
            assert (await third.reply()).code == 220
        assert len(running(server).former_preconnects) == 1
        await first.close()
    assert (await second.reply()).code == 421
    await second.close()


async def test_a_new_time_limit_applies_to_clients_that_wait_for_a_slot() -> None:
    async with serve(Discard(), limit_connections=1, when_full="defer:200") as server:
        inside = await Client.to(server.addresses[0])
        await inside.reply()
        waiting = await Client.to(server.addresses[0])
        await until(lambda: running(server).acceptor.held == 1)
        await server.reload(config_of(server, limit_connections=1, when_full="defer:0.1"))
        assert (await waiting.reply()).code == 421
        await inside.close()
        await waiting.close()


async def test_a_failed_reload_changes_nothing() -> None:
    async with serve(Discard()) as server:
        before = server.config, server.chain, server.addresses
        with socket.create_server(("127.0.0.3", 0)) as taken:
            address = f"127.0.0.3:{taken.getsockname()[1]}"
            free = f"127.0.0.4:{free_ports(1, '127.0.0.4')[0]}"
            with pytest.raises(SmtpdForkError, match="in use"):
                await server.reload(config_of(server, listen=[free, address]), handler=Discard())
        assert (server.config, server.chain, server.addresses) == before
        with pytest.raises(ConnectionRefusedError):
            await Client.to(("127.0.0.4", int(free.rpartition(":")[2])))


async def test_a_stopped_server_cannot_be_reloaded() -> None:
    async with serve(Discard()) as server:
        pass
    with pytest.raises(SmtpdForkError, match="not running"):
        await server.reload()


async def test_certificates_of_new_settings_are_used_from_the_next_handshake(
    certificates: Certificates,
) -> None:
    async with serve(Discard()) as server:
        async with await Client.to(server.addresses[0]) as inside:
            assert "STARTTLS" not in (await inside.greet()).text
            tls = {"tls_cert": str(certificates.cert), "tls_key": str(certificates.key)}
            await server.reload(config_of(server, **tls))
            assert (
                "STARTTLS" not in (await inside.say("EHLO x")).text
            )  # with the certificate of its handshake
        async with await Client.to(server.addresses[0]) as client:
            assert "STARTTLS" in (await client.greet()).text
            await client.start_tls(certificates.client)
            assert (await client.say("EHLO x")).code == 250
        with pytest.raises(SmtpdForkError, match="none"):
            await server.reload(config_of(server, tls_cert="none"))
        assert len(server.certificates) == 1
        await server.reload(config_of(server))
        assert server.certificates == ()
        async with await Client.to(server.addresses[0]) as client:
            assert "STARTTLS" not in (await client.greet()).text


@pytest.mark.parametrize("settings", [{}, {"max_from_ip": 3}, "smtpd-fork.toml"])
async def test_settings_that_are_not_a_config_are_a_type_error_with_the_right_call(
    settings: Any,
) -> None:
    async with serve(Discard()) as server:
        with pytest.raises(
            TypeError, match=r"config must be a Config, not (dict|str); use Config.bui"
        ):
            await server.reload(settings)
        assert await server.reload() == []
