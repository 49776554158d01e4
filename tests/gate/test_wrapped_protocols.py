"""gate.wrap: the protocols of other libraries behind a gate."""

from __future__ import annotations

import asyncio
import smtplib
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.controller import Controller, UnixSocketController
from support.client import Client
from support.server import until

from smtpd_fork import Gate
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.tls import Certificates


class Gated(Controller):
    def __init__(self, handler: Any, gate: Gate, **options: Any) -> None:
        super().__init__(handler, hostname="127.0.0.1", port=0, **options)
        self.gated = gate.wrap(super().factory)

    def factory(self) -> Any:
        return self.gated()

    def _trigger_server(self) -> None:  # aiosmtpd connects to the configured port, which is 0
        assert self.server is not None
        self.port = self.server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        super()._trigger_server()  # type: ignore[no-untyped-call]


def smtp(port: int) -> smtplib.SMTP:
    return smtplib.SMTP("127.0.0.1", port, timeout=10)


def wait_until_empty(gate: Gate) -> None:
    deadline = time.monotonic() + 10
    while gate.count:
        assert time.monotonic() < deadline, gate
        time.sleep(0.005)


@contextmanager
def running(gate: Gate, **options: Any) -> Iterator[Controller]:
    """Run a stock controller behind *gate*, and wait for the end of its own first connection."""
    controller = Gated(Discard(), gate, **options)
    controller.start()
    try:
        wait_until_empty(gate)
        yield controller
    finally:
        controller.stop()


def test_the_limits_of_a_gate_apply_to_a_stock_controller() -> None:
    gate = Gate(max_from_ip=2)
    with running(gate) as controller:
        with smtp(controller.port) as one, smtp(controller.port):
            assert gate.count == 2
            with pytest.raises(smtplib.SMTPConnectError) as caught:
                smtp(controller.port)
            assert caught.value.smtp_code == 421
            assert b"Too many connections from 127.0.0.1" in caught.value.smtp_error
            one.sendmail("a@b.c", ["d@e.f"], "x")
        wait_until_empty(gate)
    assert gate.clients == {}


def test_stock_starttls_that_exceeds_its_timeout_releases_the_slot(
    certificates: Certificates,
) -> None:
    """aiosmtpd does not call connection_lost then; the check of the transports finds it."""
    gate = Gate()
    with running(gate, tls_context=certificates.server, timeout=0.3) as controller:
        client = smtp(controller.port)
        client.ehlo()
        assert client.docmd("STARTTLS")[0] == 220
        assert gate.count == 1
        wait_until_empty(gate)
        client.close()


def test_stock_starttls_behind_a_gate_works(certificates: Certificates) -> None:
    gate = Gate()
    with running(gate, tls_context=certificates.server) as controller:
        with smtp(controller.port) as client:
            client.starttls()
            client.sendmail("a@b.c", ["d@e.f"], "x")
        wait_until_empty(gate)


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


async def test_a_protocol_that_fails_in_connection_made_releases_its_slot() -> None:
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
