"""All objects of an ended session are freed at once, without the garbage collector.

The daemon runs the garbage collector rarely, so that a client could fill memory by connecting if
each ended session was a reference cycle.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import socket
import ssl
import struct
from collections import Counter
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import AuthResult
from support.client import PATIENCE
from support.server import running, serve, until

from smtpd_fork import Gate
from smtpd_fork.dialogue.rejections import Rejection
from smtpd_fork.sinks import Discard
from smtpd_fork.smtp import SMTP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.tls import Certificates

OF_TLS = {"SSLProtocol", "_SSLProtocolTransport", "SSLObject", "MemoryBIO"}
"""The objects of the loops for TLS; the clients here are blocking sockets and have none."""

PLAIN, TLS, PROXY, PROXY_TLS = range(4)
LISTEN = [f"{scheme}127.0.0.1:0" for scheme in ("", "smtps:", "smtp+proxy:", "smtps+proxy:")]
HEADER = b"PROXY TCP4 127.0.0.5 127.0.0.1 5 25\r\n"

HELLO, MAIL, RCPT = b"EHLO x\r\n", b"MAIL FROM:<a@b.example>\r\n", b"RCPT TO:<c@d.example>\r\n"
ENVELOPE = (HELLO, MAIL, RCPT)
MESSAGE = (*ENVELOPE, b"DATA\r\n", b"Subject: x\r\n\r\n" + b"x" * 10_000 + b"\r\n.\r\n")
SLOW_MESSAGE = (HELLO, MAIL, b"RCPT TO:<slow@d.example>\r\n", b"DATA\r\n")

TIMES = 3


class Handler(Discard):
    """Has hooks that wait, that fail, and that run longer than their client."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = asyncio.Event()

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        if address.startswith("fail"):
            raise ValueError(address)
        if address.startswith("wait"):
            await asyncio.sleep(PATIENCE)
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if envelope.rcpt_tos[0].startswith("slow"):
            self.slow.set()
            await asyncio.sleep(0.05)
        return "250 2.0.0 Ok"

    async def handle_DISCONNECT(self, server: Any, session: Any) -> None:
        await asyncio.sleep(0)


class Peer:
    """A blocking client in a thread, which leaves no objects in the loop."""

    def __init__(self, address: Any, context: ssl.SSLContext) -> None:
        self.sock: socket.socket = socket.create_connection(address[:2], PATIENCE)
        self._context = context

    def secure(self) -> None:
        self.sock = self._context.wrap_socket(self.sock, server_hostname="localhost")

    def reply(self) -> bytes:
        text = b""
        while not re.search(rb"^\d{3} .*\r\n\Z", text, re.MULTILINE):
            some = self.sock.recv(4096)
            if not some:
                return text
            text += some
        return text

    def say(self, *commands: bytes) -> bytes:
        reply = b""
        for command in commands:
            self.sock.sendall(command)
            reply = self.reply()
        return reply

    def ended(self) -> None:
        with suppress(OSError):
            while self.sock.recv(4096):
                pass
        self.sock.close()

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)
        self.ended()

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def spoken(*commands: bytes, last: bytes = b"", end: Callable[[Peer], None] = Peer.ended) -> Any:
    """Return a plaintext client: each command after the previous reply, then *last*, then EOF."""

    def dialogue(peer: Peer) -> None:
        peer.reply()
        peer.say(*commands)
        peer.sock.sendall(last)
        end(peer)

    return dialogue


def under_tls(*commands: bytes, last: bytes = b"", end: Callable[[Peer], None] = Peer.ended) -> Any:
    def dialogue(peer: Peer) -> None:
        peer.secure()
        spoken(*commands, last=last, end=end)(peer)

    return dialogue


def upgraded(*commands: bytes, last: bytes = b"", end: Callable[[Peer], None] = Peer.ended) -> Any:
    def dialogue(peer: Peer) -> None:
        peer.reply()
        peer.say(HELLO, b"STARTTLS\r\n")
        peer.secure()
        peer.say(*commands)
        peer.sock.sendall(last)
        end(peer)

    return dialogue


def raw(data: bytes, end: Callable[[Peer], None]) -> Any:
    def dialogue(peer: Peer) -> None:
        peer.sock.sendall(data)
        end(peer)

    return dialogue


def behind_proxy(then: Callable[[Peer], None]) -> Any:
    def dialogue(peer: Peer) -> None:
        peer.sock.sendall(HEADER)
        then(peer)

    return dialogue


QUIT = b"QUIT\r\n"
STARTTLS = (HELLO, b"STARTTLS\r\n")
HELLO_OF_TLS = bytes.fromhex("1603010200010001fc0303")
ENDS = {"quiet": Peer.ended, "half closed": Peer.half_close, "reset": Peer.reset}
DIALOGUES: dict[str, tuple[int, Any]] = {
    "a plain session": (PLAIN, spoken(*MESSAGE, last=QUIT)),
    "TLS from the start": (TLS, under_tls(*MESSAGE, last=QUIT)),
    "STARTTLS": (PLAIN, upgraded(*MESSAGE, last=QUIT)),
    "behind a proxy": (PROXY, behind_proxy(spoken(*MESSAGE, last=QUIT))),
    "TLS behind a proxy": (PROXY_TLS, behind_proxy(under_tls(*MESSAGE, last=QUIT))),
    "a hook that fails": (PLAIN, spoken(HELLO, MAIL, b"RCPT TO:<fail@d.example>\r\n", last=QUIT)),
    "too many errors": (PLAIN, spoken(*[b"nonsense\r\n"] * 21)),
    "reset in a hook": (
        PLAIN, spoken(HELLO, MAIL, last=b"RCPT TO:<wait@d.example>\r\n", end=Peer.reset),
    ),
    "reset with a message in hand": (
        PLAIN, spoken(*SLOW_MESSAGE, last=b"x\r\n.\r\n", end=Peer.reset),
    ),
    "TLS, reset with a message in hand": (
        TLS, under_tls(*SLOW_MESSAGE, last=b"x\r\n.\r\n", end=Peer.reset),
    ),
    "a command too long": (PLAIN, spoken(HELLO, last=b"x" * 100_000, end=Peer.half_close)),
    **{
        f"{how}, {kind} {phase}": (where, speak(*before, last=last, end=end))
        for how, end in ENDS.items()
        for kind, where, speak in (
            ("plain", PLAIN, spoken),
            ("TLS", TLS, under_tls),
            ("STARTTLS", PLAIN, upgraded),
        )
        for phase, before, last in (
            ("idle", ENVELOPE, b""),
            ("in DATA", (*ENVELOPE, b"DATA\r\n"), b"x" * 100_000),
            ("in BDAT", (*ENVELOPE, b"BDAT 5\r\nhello"), b"BDAT 200000\r\n" + b"x" * 100_000),
            ("at a challenge", (HELLO, b"AUTH LOGIN\r\n"), b"YQ"),
        )
    },
    **{
        f"{how}, handshake {name}": (where, dialogue(end=end))
        for how, end in ENDS.items()
        for name, where, dialogue in (
            ("of garbage", TLS, partial(raw, b"hello\r\n" * 10)),
            ("begun", TLS, partial(raw, HELLO_OF_TLS)),
            ("of STARTTLS, garbage", PLAIN, partial(spoken, *STARTTLS, last=b"hello\r\n" * 10)),
            ("of STARTTLS, begun", PLAIN, partial(spoken, *STARTTLS, last=HELLO_OF_TLS)),
            ("behind a proxy", PROXY_TLS, partial(raw, HEADER + HELLO_OF_TLS)),
            ("of a proxy, garbage", PROXY, partial(raw, b"hello\r\n")),
            ("of a proxy, begun", PROXY, partial(raw, b"PROXY TCP4 ")),
        )
    },
}  # fmt: skip


def living() -> Counter[str]:
    """Count what lives of sessions, by type: all of this project's objects, and those of TLS.

    Not the last thousand rejections, which are remembered on purpose.
    """
    return Counter(
        kind.__name__
        for each in gc.get_objects()
        if (kind := type(each)).__name__ in OF_TLS
        or (str(kind.__module__).startswith("smtpd_fork.") and kind is not Rejection)
    )


@contextmanager
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def login(*_: Any) -> AuthResult:
    return AuthResult(success=True)


@pytest.mark.timeout(120)
async def test_no_object_of_an_ended_session_remains_however_it_ended(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "smtpd_fork.session")  # pytest keeps records, with errors
    handler = Handler()
    options: dict[str, Any] = {
        "listen": LISTEN,
        "tls_context": certificates.server,
        "timeout": 0.1,
        "data_timeout": 0.1,
        "tls_handshake_timeout": 0.1,
        "proxy_timeout": 0.1,
        "proxy_trust": ["127.0.0.1"],
        "max_from_ip": 0,
        "session_options": {"authenticator": login, "auth_require_tls": False},
    }

    def hold(where: int, dialogue: Any) -> None:
        peer = Peer(server.addresses[where], certificates.client)
        try:
            with suppress(OSError):
                dialogue(peer)
        finally:
            peer.sock.close()

    async def times(count: int) -> None:
        ends = [
            asyncio.to_thread(hold, *dialogue)
            for dialogue in DIALOGUES.values()
            for _ in range(count)
        ]
        await asyncio.gather(*ends)
        await until(lambda: not server.gate.count)
        await until(lambda: not running(server).sessions._finishing)
        await asyncio.sleep(0.15)  # timers remove clients that have gone

    async with serve(handler, **options) as server:
        await times(1)  # objects that are created once, and remain
        with uncollected():
            before = living()
            await times(TIMES)
            left = living() - before
            if isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop):
                del left["AcceptedSocket"]  # closed; asyncio's transport is a reference cycle
            assert left == Counter()
    assert handler.slow.is_set()


async def test_a_wrapped_protocol_is_freed_at_its_end() -> None:
    gate = Gate()
    loop = asyncio.get_running_loop()
    wrapped = gate.wrap(lambda: SMTP(Discard(), hostname="mx.example.com", loop=loop))
    server = await loop.create_server(wrapped, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()

    def hold() -> None:
        spoken(HELLO, last=QUIT)(Peer(address, ssl.create_default_context()))

    def count() -> int:
        return sum(type(each) is SMTP for each in gc.get_objects())

    async with server:
        with uncollected():
            before = count()
            await asyncio.to_thread(hold)
            await until(lambda: not gate.count)
            await asyncio.sleep(0)
            assert count() == before
