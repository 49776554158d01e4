"""Memory for clients is charged, released, and limited.

All clients together use at most ``--max-buffered`` and a fixed allowance for each session; one
client uses at most its share (``--max-buffered-from-ip``) and the allowances. After the end of a
transaction, however it ends, nothing is charged for it.
"""

from __future__ import annotations

import asyncio
import gc
import re
import socket
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from fuzz.hostile import resident
from support.client import MAIL, RCPT, Client, code_and_enhanced
from support.daemon import Daemon
from support.memory import HELLO, LONG_RCPT, TEXT, UTF8_MAIL, Slow, holder
from support.page import read
from support.server import serve, until

from smtpd_fork.config import Config
from smtpd_fork.dialogue.budget import ALLOWANCE
from smtpd_fork.server.session_factory import buffered_share
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from pathlib import Path

    from support.tls import Certificates

EACH = {"smtp": 192 * 1024, "smtps": 448 * 1024}
"""Bytes that a session may use besides the charged ones (docs/security.md has them).

64 KiB are not charged, and a session has buffers; under TLS it has 256 KiB more, and the memory of
OpenSSL, which is not measured here."""


# -- measured memory ------------------------------------------------------------------------------

SESSIONS = 6
LIMIT = 2 << 20
ENVELOPE = HELLO + b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"
SLOW_ENVELOPE = HELLO + b"MAIL FROM:<a@b.example>\r\nRCPT TO:<slow@d.example>\r\n"
FLOOD = b"NOOP\r\n" * 100_000


WAYS: dict[str, tuple[bytes, ...]] = {
    "a message": (ENVELOPE + b"DATA\r\n", TEXT),
    "chunks": (ENVELOPE, b"BDAT 1000000\r\n" + TEXT, b"BDAT 1000\r\n" + b"x" * 999),
    "many chunks": (ENVELOPE, *[b"BDAT 50000\r\n" + TEXT[:50_000]] * 20),
    "an envelope": (HELLO + UTF8_MAIL, LONG_RCPT * 1000),
    "an envelope and a message": (HELLO + UTF8_MAIL, LONG_RCPT * 200, b"DATA\r\n", TEXT),
    "half an AUTH": (HELLO + b"AUTH LOGIN\r\n", b"YQ==" * 3000 + b"\r\n", b"YQ==" * 3000),
    "a command without end": (HELLO, b"RCPT TO:<" + b"x" * 100_000),
    "replies that nobody reads": (b"EHLO x\r\n" * 100_000,),
    "a message in hand": (SLOW_ENVELOPE + b"DATA\r\n", TEXT + b".\r\n"),
    "input behind a message in hand": (SLOW_ENVELOPE + b"DATA\r\n", b"x\r\n.\r\n", FLOOD),
}


def fill(sock: socket.socket, parts: tuple[bytes, ...]) -> None:
    """Send the input of a client, as far as the server reads it."""
    sock.settimeout(0.2)
    with suppress(OSError):
        for part in parts:
            sock.sendall(part)


@pytest.mark.parametrize(
    ("way", "scheme"),
    [
        *((way, "smtp") for way in WAYS),
        *((way, "smtps") for way in ("an envelope", *list(WAYS)[-3:])),
    ],
)
async def test_memory_is_at_most_the_budget_and_an_allowance_per_session(
    way: str, scheme: str, certificates: Certificates
) -> None:
    handler = Slow()
    options: dict[str, Any] = {
        "listen": [f"{scheme}:127.0.0.1:0"],
        "tls_context": certificates.server,
        "max_buffered": LIMIT,
        "max_buffered_from_ip": 0,
        "session_options": {"auth_require_tls": False, "authenticator": lambda *_: None},
    }
    async with serve(handler, **options) as server:
        address: Any = server.addresses[0]
        gc.collect()
        tracemalloc.start()
        clients = [socket.create_connection(address) for _ in range(SESSIONS)]
        await until(lambda: server.sessions == SESSIONS)
        if scheme == "smtps":
            secure = certificates.client.wrap_socket
            clients = [
                await asyncio.to_thread(secure, sock, server_hostname="localhost")
                for sock in clients
            ]
        try:
            fills = [asyncio.to_thread(fill, sock, WAYS[way]) for sock in clients]
            await asyncio.gather(*fills)
            await asyncio.sleep(0.05)
            gc.collect()
            held = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert server._budget.used <= LIMIT
        assert held <= LIMIT + SESSIONS * EACH[scheme]
        handler.leave.set()
        for sock in clients:
            sock.close()
        await until(lambda: not server.sessions)
        # A handler finishes a message even if the client has gone.
        await until(lambda: not server._budget.used)


def steady(pid: int) -> list[int]:
    """Return the memory of a process once it no longer changes."""
    seen = [resident(pid)]
    while len(seen) < 10 or len(set(seen[-10:])) > 1:
        time.sleep(0.1)  # the input is read meanwhile
        seen.append(resident(pid))
    return seen


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_at_default_settings_one_client_holds_what_the_security_page_says(
    scheme: str, tmp_path: Path, certificates: Certificates
) -> None:
    page = read("docs/security.md")
    told = re.search(r"one client, with its (\d+) sessions \| (\d+) MiB; with TLS (\d+) MiB", page)
    assert told is not None
    count, most = int(told[1]), int(told[3 if scheme == "smtps" else 2]) << 20
    sockets: list[socket.socket] = []

    def hold(_: int) -> None:
        sock = socket.create_connection(("127.0.0.1", daemon.port), 20)
        if scheme == "smtps":
            sock = certificates.client.wrap_socket(sock, server_hostname="localhost")
        sockets.append(sock)
        sock.sendall(ENVELOPE + b"DATA\r\n")
        with suppress(OSError):  # some sessions of clients above their share are ended
            sock.sendall(TEXT * 2)

    tls = ("--tls-cert", str(certificates.cert), "--tls-key", str(certificates.key))
    listen = ("-l", f"{scheme}:127.0.0.1:0", "--handler", "discard")
    with Daemon(*listen, *tls, cwd=tmp_path) as daemon:
        before = resident(daemon.process.pid)
        with ThreadPoolExecutor(count) as threads:
            list(threads.map(hold, range(count)))
        held = max(steady(daemon.process.pid)) - before
        for sock in sockets:
            sock.close()
    assert most // 2 < held < most


async def test_a_message_is_charged_until_its_handler_has_ended() -> None:
    """Otherwise clients that send and disconnect would fill memory while a handler is slow."""
    handler = Slow()
    async with serve(handler, max_buffered=LIMIT) as server:
        client = await Client.to(server.addresses[0])
        await client.reply()
        client.send(SLOW_ENVELOPE + b"DATA\r\n" + TEXT + b".\r\n")
        await until(lambda: handler.inside)
        client.reset()
        await until(lambda: not server.gate.count)
        assert server._budget.used >= len(TEXT) - ALLOWANCE
        handler.leave.set()
        await until(lambda: not handler.inside)
        await until(lambda: not server._budget.used)


# -- a client's share -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_settings", "share"),
    [
        ({}, 64 << 20),
        ({"max_buffered": "4G"}, 512 << 20),
        ({"max_buffered": "64M"}, 36 << 20),  # the largest message, and its envelope
        ({"max_message_size": 0}, 256 << 20),
        ({"max_buffered": 0}, 0),
        ({"max_from_ip": 0}, 0),
        ({"max_buffered_from_ip": "1M"}, 1 << 20),
        ({"max_buffered_from_ip": 0}, 0),
    ],
)
def test_one_client_may_hold_an_eighth_by_default_and_a_message_at_least(
    given_settings: dict[str, Any], share: int
) -> None:
    assert buffered_share(Config.build(given_settings)) == share


async def test_a_client_above_its_share_gets_452_and_the_others_are_served() -> None:
    options = {"max_buffered": "4M", "max_buffered_from_ip": "1M", "exempt": ["127.0.0.9"]}
    async with serve(Discard(), **options) as server:
        clients = [await holder(server, 900_000, source=f"127.0.0.{n}") for n in (2, 9, 9)]
        async with await Client.to(server.addresses[0], source="127.0.0.2") as more:
            await more.greet()
            refused = await more.deliver(TEXT.decode())
            assert code_and_enhanced(refused) == (452, "4.3.1")
            assert (await more.deliver()).code == 250  # a small one takes no budget
            assert code_and_enhanced(await more.say(f"{MAIL} SIZE=900000", RCPT, "DATA")) == (
                452,
                "4.3.1",
            )
        async with await Client.to(server.addresses[0], source="127.0.0.3") as other:
            await other.greet()
            assert (await other.deliver(TEXT[:800_000].decode())).code == 250
        for client in clients:
            client.send(b"BDAT 0 LAST\r\n")
            assert (await client.reply()).code == 250
            await client.close()
        assert server._budget.used == 0


async def test_a_reload_changes_the_share() -> None:
    async with serve(Discard(), max_buffered=LIMIT, max_buffered_from_ip="1M") as server:
        await server.reload(Config.build({"max_buffered": 0, "max_buffered_from_ip": "2M"}))
        assert (server._budget.limit, server._budget.share) == (0, 2 << 20)
