"""The gate's rules in a process and in a server, on real sockets."""

from __future__ import annotations

import asyncio
import re
import signal
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.daemon import LOCAL, Daemon
from support.dialogue import first_line
from support.server import running, serve, until

from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from pathlib import Path

    from support.tls import Certificates

RELAY, OTHER = "127.0.0.9", "127.0.0.1"


def test_a_denied_client_gets_554_with_the_text_of_the_list(tmp_path: Path) -> None:
    listed = tmp_path / "bad.list"
    listed.write_text("127.0.0.0/30 No mail from here\n")
    options = ("--deny", str(listed), "--allow", "127.0.0.2", "--hostname", "mx.example.com")
    with Daemon(*LOCAL, *options, cwd=tmp_path) as daemon:
        refused = first_line(("127.0.0.1", daemon.port))
        expected = r"554 5\.7\.1 mx\.example\.com No mail from here \[\w+-\w+\]\r\n"
        assert re.fullmatch(expected, refused), refused
        daemon.wait_for(r"refused 127\.0\.0\.0/30: deny, client 127\.0\.0\.\d \[\w+-\w+\]")
        with daemon.smtp(source="127.0.0.2") as allowed, daemon.smtp(source="127.0.0.4") as other:
            assert allowed.noop()[0] == other.noop()[0] == 250


def test_max_from_net_limits_the_clients_of_a_network_together(tmp_path: Path) -> None:
    options = ("--max-from-net", "2/29", "--max-from-net", "4/24")
    with Daemon(*LOCAL, *options, cwd=tmp_path) as daemon, ExitStack() as stack:
        for host in ("127.0.0.1", "127.0.0.2", "127.0.0.9", "127.0.0.10"):
            stack.enter_context(daemon.smtp(source=host))
        refused = first_line(("127.0.0.1", daemon.port))
        assert "421 4.7.0 " in refused
        assert "from 127.0.0.0/29," in refused


def test_rate_counts_new_sessions_even_if_earlier_ones_have_ended(tmp_path: Path) -> None:
    with Daemon(*LOCAL, "--rate", "3/h", cwd=tmp_path) as daemon:
        for _ in range(3):
            daemon.smtp().quit()
        refused = first_line(("127.0.0.1", daemon.port))
        assert "Too many new connections from 127.0.0.1," in refused
        daemon.smtp(source="127.0.0.2").quit()


def test_refuse_every_is_repeatable(tmp_path: Path) -> None:
    options = ("--refuse-first", "1", "--refuse-every", "2")
    with Daemon(*LOCAL, *options, cwd=tmp_path) as daemon:
        # The test's own wait for the port may have been the first of all.
        codes = [first_line(("127.0.0.1", daemon.port))[:3] for _ in range(6)]
        assert codes[1:] in (["220", "421", "220", "421", "220"], ["421", "220"] * 2 + ["421"])


async def test_ipv6_clients_of_one_64_are_one_client() -> None:
    async with serve(Discard(), listen=["[::1]:0"], max_from_ip=1) as server:
        async with await Client.to(server.addresses[0]) as first:
            await first.greet()
            async with await Client.to(server.addresses[0]) as second:
                assert "from ::/64, try" in (await second.reply()).text


@pytest.mark.parametrize("when_full", ["defer", "defer:60", "refuse"])
async def test_a_flood_cannot_lock_exempt_clients_out(when_full: str) -> None:
    """Also with deferred clients, even if more of them wait than allowed."""
    options = {"limit_connections": 4, "reserve": 2, "exempt": RELAY, "backlog": 3}
    async with serve(Discard(), when_full=when_full, max_from_ip=0, **options) as server:
        address = server.addresses[0]
        inside = [await Client.to(address, source=OTHER) for _ in range(2)]
        for client in inside:
            await client.greet()
        flood = [await Client.to(address, source=OTHER) for _ in range(10)]
        refused = flood[3:] if when_full.startswith("defer") else flood
        for client in refused:
            assert (await client.reply()).code == 421
        relays = [await Client.to(address, source=RELAY) for _ in range(2)]
        for relay in relays:
            assert (await relay.greet()).code == 250
        assert server.gate.full
        for client in (*inside, relays[0]):
            await client.close()
        if when_full != "refuse":
            assert (await flood[0].greet()).code == 250  # the client that has waited longest
        async with await Client.to(address, source=RELAY) as third:
            assert (await third.greet()).code == 250
        for client in (*flood, relays[1]):
            await client.close()


async def test_waiting_for_a_slot_while_only_reserved_ones_are_free_does_not_keep_the_loop_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"limit_connections": 2, "reserve": 1, "exempt": RELAY}
    async with serve(Discard(), max_from_ip=0, **options) as server:
        async with await Client.to(server.addresses[0], source=OTHER) as first:
            await first.greet()
            waiting = await Client.to(server.addresses[0], source=OTHER)
            async with await Client.to(server.addresses[0], source=RELAY) as relay:
                await relay.greet()
            acceptor = running(server).acceptor
            turns: list[None] = []
            reopen = acceptor.reopen

            def counted() -> None:
                turns.append(None)
                reopen()

            monkeypatch.setattr(acceptor, "reopen", counted)
            for _ in range(3):
                assert (await first.say("NOOP")).code == 250
            assert len(turns) <= 2
        assert (await waiting.greet()).code == 250
        await waiting.close()


async def test_the_ledger_lists_the_client_and_the_phase_of_each_slot(
    certificates: Certificates,
) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    class Slow(Discard):
        async def handle_RCPT(
            self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
        ) -> str:
            if address.startswith("slow"):
                entered.set()
                await leave.wait()
            envelope.rcpt_tos.append(address)
            return "250 2.1.5 Ok"

    listen = ["127.0.0.1:0", "smtps:127.0.0.1:0"]
    async with (
        serve(Slow(), listen=listen, tls_context=certificates.server, exempt=RELAY) as server,
        AsyncExitStack() as stack,
    ):

        async def client(index: int = 0, **options: Any) -> Client:
            return await stack.enter_async_context(
                await Client.to(server.addresses[index], **options)
            )

        def phases() -> list[str]:
            return [entry.phase for entry in server.gate.ledger()]

        idle = await client(source=RELAY)
        await idle.greet()
        assert (await idle.deliver()).code == 250
        busy = await client()
        await busy.greet()
        await busy.say("MAIL FROM:<a@example.com>")
        busy.send("RCPT TO:<slow@example.com>\r\n")
        await entered.wait()
        sending = await client()
        await sending.greet()
        await sending.say("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "DATA")
        encrypted = await client(1, tls=certificates.client)
        await encrypted.greet()
        _, writer = await asyncio.open_connection(*server.addresses[1][:2])
        await until(lambda: len(server.gate.ledger()) >= 5)
        assert phases() == ["command", "handler", "data", "command", "handshake"]
        entries = server.gate.ledger()
        assert [entry.tls for entry in entries] == [False, False, False, True, False]
        assert [entry.messages for entry in entries] == [1, 0, 0, 0, 0]
        assert [entry.exempt for entry in entries] == [True, False, False, False, False]
        assert entries[0].key == RELAY
        assert entries[3].listener == f"smtps:127.0.0.1:{server.addresses[1][1]}"
        assert entries[0].seconds >= entries[1].seconds >= 0
        assert server.audit() == []
        leave.set()
        assert (await busy.reply()).code == 250
        writer.close()
        await until(lambda: len(phases()) != 5)
    assert server.gate.ledger() == []


def test_sighup_reads_the_lists_again_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    listed = tmp_path / "bad.list"
    listed.write_text("127.0.0.2\n")
    options = ("--deny", str(listed), "--rate", "4/h")
    with Daemon(*LOCAL, *options, cwd=tmp_path) as daemon:

        def code(host: str) -> str:
            return first_line(("127.0.0.1", daemon.port), source=host)[:3]

        def reload(text: str, says: str) -> None:
            listed.write_text(text)
            daemon.signal(signal.SIGHUP)
            daemon.wait_for(says)

        with daemon.smtp(source="127.0.0.3") as inside:
            assert (code("127.0.0.2"), code("127.0.0.3")) == ("554", "220")
            reload("127.0.0.3 New\n", "configuration reloaded")
            assert (code("127.0.0.2"), code("127.0.0.3")) == ("220", "554")
            assert inside.noop()[0] == 250  # open sessions continue
            reload("127.0.0.3\nnonsense\n", r"stay in force: .*bad\.list, line 2: 'nonsense'")
            assert (code("127.0.0.2"), code("127.0.0.3")) == ("220", "554")
            listed.unlink()
            reload_without = r"stay in force: .*No such file"
            daemon.signal(signal.SIGHUP)
            daemon.wait_for(reload_without)
            assert code("127.0.0.3") == "554"
        assert [code("127.0.0.2") for _ in range(3)] == ["220", "220", "421"]  # the rate is kept
