"""Server in a program that already runs an event loop."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import MISSING
from support.client import Client
from support.server import greeted, serve

import smtpd_fork
from smtpd_fork import Config, Gate, Limits, Refusal, Server
from smtpd_fork.config import SettingError
from smtpd_fork.listeners import open_listeners
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from pathlib import Path


def test_all_public_names_can_be_imported() -> None:
    assert {"Server", "Gate", "Ticket", "Refusal", "Config"} <= set(smtpd_fork.__all__)
    assert all(hasattr(smtpd_fork, name) for name in smtpd_fork.__all__)


async def test_a_server_handles_no_signals_and_changes_no_logging_or_foreign_tasks() -> None:
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    mail_log = logging.getLogger("mail.log").level
    mine = asyncio.ensure_future(asyncio.Event().wait())
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before
    assert (logging.getLogger().handlers, logging.getLogger().level) == (handlers, level)
    assert logging.getLogger("mail.log").level == mail_log
    assert not mine.done()
    mine.cancel()


async def test_addresses_are_the_bound_addresses(tmp_path: Path) -> None:
    listen = ["127.0.0.1:0", "[::1]:0", f"unix:{tmp_path / 'x.sock'}"]
    async with serve(Discard(), listen=listen) as server:
        four, six, path = server.addresses
        assert four[0] == "127.0.0.1"
        assert server.port == four[1] != 0
        assert six[0] == "::1"
        assert path == str(tmp_path / "x.sock")


async def test_options_have_the_names_and_the_syntax_of_the_flags() -> None:
    async with serve(
        Discard(), limit_connections=100, max_from_ip=10, max_message_size="1M", timeout="5m"
    ) as server:
        assert server.gate.limits.limit_connections == 100
        assert server.gate.limits.max_from_ip == 10
        assert server.config.timeout == 300
        async with await Client.to(server.addresses[0]) as client:
            assert "SIZE 1048576" in (await client.greet()).lines


async def test_a_config_object_can_be_used_instead_of_options() -> None:
    config = Config.build({"listen": ["127.0.0.1:0"], "limit_connections": 3})
    async with Server(Discard(), config=config) as server:
        assert server.gate.limits.limit_connections == 3


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"limit_conections": 3}, SettingError),
        ({"limit_connections": -1}, SettingError),
        ({"listen": ["nonsense:x"], "config": Config()}, TypeError),
        ({"gate": Gate(), "max_from_ip": 3}, TypeError),
        ({"gate": Limits()}, TypeError),
        ({"config": {}}, TypeError),
        ({"limits": {"max_from_ip": 3}}, TypeError),
        ({"tls_context": "cert.pem"}, TypeError),
        ({"tally": {}}, TypeError),
        ({"require_starttls": True}, SettingError),
        ({"listen": ["smtps:127.0.0.1:0"]}, SettingError),
        ({"tls_cert": "/nosuch"}, smtpd_fork.SmtpdForkError),
    ],
)
def test_invalid_options_are_errors_before_anything_is_bound(
    options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        Server(Discard(), **options)


async def test_several_handlers_are_a_chain() -> None:
    class Picky:
        async def handle_RCPT(
            self, server: Any, session: Any, envelope: Any, to: str, _: Any
        ) -> Any:
            return "550 5.1.1 No such user" if to.startswith("no") else MISSING

    async with greeted([Picky(), Discard()]) as client:
        await client.say("MAIL FROM:<a@b.c>")
        assert (await client.say("RCPT TO:<nobody@b.c>")).code == 550
        assert (await client.say("RCPT TO:<some@b.c>")).code == 250
        assert (await client.say("DATA")).code == 354


async def test_a_reload_does_not_change_the_limits_of_a_shared_gate(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("192.0.2.0/24\n")
    deny = str(tmp_path / "list")
    gate = Gate(limit_connections=7)
    async with Server(Discard(), gate=gate, listen=["127.0.0.1:0"]) as server:
        await server.reload()
    assert gate.limits == Limits(limit_connections=7)
    async with Server(Discard(), deny=deny, listen=["127.0.0.1:0"]) as server:
        (tmp_path / "list").write_text("127.0.0.0/8\n")
        await server.reload()
        assert isinstance(server.gate.admit("127.0.0.1"), Refusal)


@pytest.mark.parametrize("ending", ["stop", "abort"])
async def test_a_stop_before_the_start_has_no_effect_on_a_later_start(ending: str) -> None:
    server = Server(Discard(), listen=["127.0.0.1:0"])
    await getattr(server, ending)()
    server.bind()
    await getattr(server, ending)()
    assert server.addresses == []
    await server.start()
    async with await Client.to(server.addresses[0]) as client:
        assert (await client.reply()).code == 220
        await server.stop()
        assert (await client.reply()).code == 421
    with pytest.raises(ConnectionRefusedError):
        await Client.to(("127.0.0.1", client.writer.get_extra_info("peername")[1]))
    assert server.gate.count == 0


@pytest.mark.parametrize("ending", ["stop", "abort"])
async def test_a_stop_while_it_starts_ends_the_start(ending: str) -> None:
    server = Server(Discard(), listen=["127.0.0.1:0"])
    starting = asyncio.create_task(server.start())
    await asyncio.sleep(0)  # the start has begun
    await getattr(server, ending)()
    with pytest.raises(RuntimeError, match="stopped while it started"):
        await starting
    assert server.addresses == []
    async with server:  # it can still be started
        assert server.addresses


async def test_a_server_can_be_started_only_once() -> None:
    server = Server(Discard(), listen=["127.0.0.1:0"])
    starting = asyncio.create_task(server.start())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="create a new Server"):
        await server.start()
    await starting
    with pytest.raises(RuntimeError, match="create a new Server"):
        await server.start()
    await server.stop()
    with pytest.raises(RuntimeError, match="create a new Server"):
        await server.start()
    assert await server.stop() == 0


async def test_a_server_cannot_start_after_a_stop_has_closed_its_listeners() -> None:
    listeners = open_listeners(Config(listen=("127.0.0.1:0",)))
    server = Server(Discard(), listeners=listeners)
    await server.stop()
    with pytest.raises(RuntimeError, match="create a new Server"):
        await server.start()


def test_a_server_imports_neither_the_command_line_nor_tls_nor_uvloop() -> None:
    program = (
        "import sys, smtpd_fork\n"
        "assert not {'aiosmtpd', 'msgspec'} & set(sys.modules)\n"
        "smtpd_fork.Server\n"
        "others = {'click', 'cryptography', 'uvloop', 'aiohttp', 'prometheus_client'}\n"
        "print(others & set(sys.modules))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == "set()\n"
