"""Server in a program that already runs a loop; the gate around other people's protocols."""

from __future__ import annotations

import asyncio
import logging
import signal
import smtplib
import socket
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.controller import Controller, UnixSocketController
from aiosmtpd.smtp import MISSING
from support.client import Client
from support.server import serve, until

import smtpd_fork
from smtpd_fork import Config, Gate, Limits, Refusal, Server
from smtpd_fork.config import SettingError
from smtpd_fork.server.sessions import Sessions
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from pathlib import Path

    from support.tls import Certificates


def test_the_public_names_are_there() -> None:
    assert {"Server", "Gate", "Ticket", "Refusal", "Config"} <= set(smtpd_fork.__all__)
    assert all(hasattr(smtpd_fork, name) for name in smtpd_fork.__all__)


async def test_it_takes_no_signal_touches_no_logging_and_cancels_no_task_but_its_own() -> None:
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


async def test_addresses_are_what_was_really_bound(tmp_path: Path) -> None:
    listen = ["127.0.0.1:0", "[::1]:0", f"unix:{tmp_path / 'x.sock'}"]
    async with serve(Discard(), listen=listen) as server:
        (host, port), six, path = server.addresses
        assert host == "127.0.0.1"
        assert port > 0
        assert six[0] == "::1"
        assert path == str(tmp_path / "x.sock")


async def test_options_are_named_like_the_flags_and_read_like_them() -> None:
    async with serve(
        Discard(), limit_connections=100, max_from_ip=10, max_message_size="1M", timeout="5m"
    ) as server:
        assert server.gate.limits.limit_connections == 100
        assert server.gate.limits.max_from_ip == 10
        assert server.config.timeout == 300
        async with await Client.to(server.addresses[0]) as client:
            assert "SIZE 1048576" in (await client.greet()).lines


async def test_a_config_object_serves_as_well() -> None:
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
        ({"require_starttls": True}, SettingError),
        ({"listen": ["smtps:127.0.0.1:0"]}, SettingError),
        ({"tls_cert": "/nosuch"}, smtpd_fork.SmtpdForkError),
    ],
)
def test_options_that_cannot_be_are_errors_before_anything_is_bound(
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

    async with (
        serve([Picky(), Discard()]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        await client.say("MAIL FROM:<a@b.c>")
        assert (await client.say("RCPT TO:<nobody@b.c>")).code == 550
        assert (await client.say("RCPT TO:<some@b.c>")).code == 250
        assert (await client.say("DATA")).code == 354


# -- the stop ----------------------------------------------------------------------------------


async def test_a_stop_tells_idle_sessions_421() -> None:
    async with serve(Discard()) as server:
        client = await Client.to(server.addresses[0])
        await client.greet()
        stop = asyncio.ensure_future(server.stop())
        assert await client.reply() == (421, ["4.3.2 mx.example.com Service shutting down"])
        assert await client.ended()
        assert await stop == 0
        await client.close()


async def test_a_stop_tells_clients_in_the_backlog_421() -> None:
    async with serve(Discard(), limit_connections=1) as server:
        first = await Client.to(server.addresses[0])
        await first.greet()
        waiting = [await Client.to(server.addresses[0]) for _ in range(10)]
        await server.stop()
        for client in [first, *waiting]:
            assert (await client.reply()).code == 421
            await client.close()


async def test_a_stop_tells_clients_in_the_waiting_room_421() -> None:
    async with serve(Discard(), limit_connections=1, when_full="defer:60") as server:
        first = await Client.to(server.addresses[0])
        await first.greet()
        waiting = [await Client.to(server.addresses[0]) for _ in range(3)]
        await asyncio.sleep(0.05)
        await server.stop()
        for client in waiting:
            assert (await client.reply()).text.endswith("shutting down")
            await client.close()
        await first.close()


async def test_a_stop_lets_a_message_in_flight_finish() -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        await client.say("MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA")
        client.send("half of\r\n")
        stop = asyncio.ensure_future(server.stop())
        await asyncio.sleep(0.05)
        client.send("it\r\n.\r\n")
        assert (await client.reply()).code == 250
        assert (await client.reply()).code == 421
        assert await client.ended()
        assert await stop == 0


async def test_a_stop_cuts_what_does_not_finish_in_time() -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        await client.say("MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA")
        assert await server.stop(0.1) == 1
        assert server.gate.count == 0
        assert await client.ended()


async def test_a_stop_cancels_a_handler_that_does_not_finish_in_time() -> None:
    called, cancelled = asyncio.Event(), asyncio.Event()

    class Stuck:
        async def handle_DATA(self, *_: Any) -> str:
            called.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return "250 never"

    async with serve(Stuck()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        await client.say("MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA")
        client.send("x\r\n.\r\n")
        await called.wait()
        assert await server.stop(0.1) == 1
    assert cancelled.is_set()


async def test_a_stop_ends_handshakes(certificates: Certificates) -> None:
    options = {"listen": ["127.0.0.1:0", "smtps:127.0.0.1:0"], "tls_context": certificates.server}
    async with serve(Discard(), **options) as server:
        plain, implicit = server.addresses
        starttls = await Client.to(plain)
        await starttls.greet()
        await starttls.say("STARTTLS")
        idle = await Client.to(implicit)
        await until(lambda: server.gate.count >= 2)
        assert await server.stop() == 0
        assert await starttls.ended()
        assert await idle.ended()
        await starttls.close()
        await idle.close()


async def test_a_stop_that_is_cancelled_cuts_and_gives_every_place_back() -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        await client.say("MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.stop(60), 0.1)
        assert await client.ended()


async def test_two_stops_end_together() -> None:
    async with serve(Discard()) as server, await Client.to(server.addresses[0]) as client:
        await client.greet()
        assert list(await asyncio.gather(server.stop(), server.stop())) == [0, 0]


async def test_a_reload_leaves_the_limits_of_a_gate_that_is_shared_alone(tmp_path: Path) -> None:
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


async def test_a_farewell_that_is_cancelled_before_it_began_holds_up_no_stop() -> None:
    class Polite(Discard):
        async def handle_DISCONNECT(self, server: Any, session: Any) -> None:
            await asyncio.sleep(0)

    async with Server(Polite(), listen=["127.0.0.1:0"]) as server:
        client = await Client.to(server.addresses[0])
        await client.greet()
        assert server._sessions is not None
        (session,) = server._sessions._tickets
        session.connection_lost(None)
        assert session.task is not None
        session.task.cancel()  # as a stop that has no time left does
        for _ in range(5):
            await asyncio.sleep(0)
        assert not server._sessions._finishing
        await client.close()


async def test_after_a_stop_the_port_is_free_again() -> None:
    async with serve(Discard()) as server:
        address = server.addresses[0]
    async with serve(Discard(), listen=[f"127.0.0.1:{address[1]}"]):
        pass


def test_a_loop_that_cancels_everything_leaves_no_place_taken() -> None:
    """What asyncio.run() does at a KeyboardInterrupt, in the middle of connecting."""
    gate = Gate()

    async def main() -> None:
        async with Server(Discard(), gate=gate, listen=["127.0.0.1:0"], shutdown_timeout=0.1) as s:
            clients.extend(socket.create_connection(s.addresses[0]) for _ in range(5))
            while gate.count < 5:
                await asyncio.sleep(0)
            for task in asyncio.all_tasks():
                task.cancel()
            await asyncio.sleep(60)

    clients: list[socket.socket] = []
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert gate.count == 0
    for client in clients:
        client.close()


async def test_a_task_that_is_cancelled_before_it_ran_gives_its_place_back(
    monkeypatch: pytest.MonkeyPatch, certificates: Certificates
) -> None:
    welcome = Sessions.welcome

    def welcome_and_cancel(self: Sessions, *args: Any) -> None:
        welcome(self, *args)
        for task in self._handshakes:
            task.cancel()

    monkeypatch.setattr(Sessions, "welcome", welcome_and_cancel)
    options: dict[str, Any] = {"listen": ["smtps:127.0.0.1:0"], "tls_context": certificates.server}
    async with (
        serve(Discard(), **options) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        assert await client.ended()
        assert server.gate.count == 0


# -- gate.wrap ---------------------------------------------------------------------------------


class Gated(Controller):
    def __init__(self, handler: Any, gate: Gate, **options: Any) -> None:
        super().__init__(handler, hostname="127.0.0.1", port=0, **options)
        self.gated = gate.wrap(super().factory)

    def factory(self) -> Any:
        return self.gated()

    def _trigger_server(self) -> None:  # aiosmtpd asks for the port that was configured, 0
        assert self.server is not None
        self.port = self.server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        super()._trigger_server()  # type: ignore[no-untyped-call]


def smtp(port: int) -> smtplib.SMTP:
    return smtplib.SMTP("127.0.0.1", port, timeout=10)


def wait_until_empty(gate: Gate) -> None:
    import time

    deadline = time.monotonic() + 10
    while gate.count:
        assert time.monotonic() < deadline, gate
        time.sleep(0.005)


def test_a_stock_controller_behind_a_gate_has_its_limits() -> None:
    gate = Gate(max_from_ip=2)
    controller = Gated(Discard(), gate)
    controller.start()
    try:
        wait_until_empty(gate)
        with smtp(controller.port) as one, smtp(controller.port):
            assert gate.count == 2
            with pytest.raises(smtplib.SMTPConnectError) as caught:
                smtp(controller.port)
            assert caught.value.smtp_code == 421
            assert b"Too many connections from 127.0.0.1" in caught.value.smtp_error
            one.sendmail("a@b.c", ["d@e.f"], "x")
        wait_until_empty(gate)
    finally:
        controller.stop()
    assert gate.sources == {}


def test_stock_starttls_that_stalls_past_its_timeout_gives_the_place_back(
    certificates: Certificates,
) -> None:
    """aiosmtpd never calls connection_lost then; the sweep finds it."""
    gate = Gate()
    controller = Gated(Discard(), gate, tls_context=certificates.server, timeout=0.3)
    controller.start()
    try:
        wait_until_empty(gate)
        client = smtp(controller.port)
        client.ehlo()
        assert client.docmd("STARTTLS")[0] == 220
        assert gate.count == 1
        wait_until_empty(gate)
        client.close()
    finally:
        controller.stop()


def test_stock_starttls_behind_a_gate_works(certificates: Certificates) -> None:
    gate = Gate()
    controller = Gated(Discard(), gate, tls_context=certificates.server)
    controller.start()
    try:
        with smtp(controller.port) as client:
            client.starttls()
            client.sendmail("a@b.c", ["d@e.f"], "x")
        wait_until_empty(gate)
    finally:
        controller.stop()


class Echo(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            raise RuntimeError("a protocol that fails in connection_lost")


class Slotted(asyncio.BufferedProtocol):
    __slots__ = ("buffer", "transport")

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.buffer = bytearray(100)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(self.buffer[:nbytes]))


@pytest.mark.parametrize("protocol", [Echo, Slotted])
async def test_any_protocol_can_be_behind_a_gate(protocol: type[asyncio.BaseProtocol]) -> None:
    gate = Gate(limit_connections=1)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)  # Echo fails on purpose
    server = await loop.create_server(gate.wrap(protocol), "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    async with await Client.to(address) as client:
        client.send("hello\n")
        assert await client.reader.readline() == b"hello\n"
        assert gate.count == 1
        async with await Client.to(address) as second:
            assert "Too many connections, try again later [" in (await second.reply()).text
            assert await second.ended()
    await until(lambda: not gate.count)
    server.close()
    await server.wait_closed()


async def test_a_protocol_that_fails_to_begin_gives_its_place_back() -> None:
    def fail() -> asyncio.Protocol:
        raise RuntimeError("no protocol today")

    gate = Gate()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)
    server = await loop.create_server(gate.wrap(fail), "127.0.0.1", 0)
    async with await Client.to(server.sockets[0].getsockname()) as client:
        assert await client.ended()
    assert gate.count == 0
    server.close()
    await server.wait_closed()


def test_a_unix_controller_behind_a_gate_works(tmp_path: Path) -> None:
    gate = Gate(limit_connections=5, max_from_ip=1)

    class GatedUnix(UnixSocketController):
        def factory(self) -> Any:
            return gate.wrap(super().factory)()

    controller = GatedUnix(Discard(), str(tmp_path / "x.sock"))
    controller.start()
    controller.stop()
    assert gate.count == 0
