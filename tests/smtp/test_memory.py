"""Memory: what is held for clients is charged, given back, and bounded.

The law: what is held for all clients is at most ``--max-buffered`` and a fixed allowance for each
session; for one client its share (``--max-buffered-from-ip``) and the allowances. When a
transaction ends, however it ends, nothing is charged for it any more.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import re
import socket
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import AuthResult
from fuzz.hostile import resident
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.client import MAIL, RCPT, Client, code_and_enhanced
from support.daemon import Daemon
from support.page import read
from support.server import serve, until

from smtpd_fork.config import Config
from smtpd_fork.dialogue import Budget, memory
from smtpd_fork.dialogue import budget as budget_module
from smtpd_fork.dialogue.budget import ALLOWANCE
from smtpd_fork.dialogue.framer import LINE_LIMIT
from smtpd_fork.server.blueprint import buffered_share
from smtpd_fork.sinks import Discard
from smtpd_fork.smtp import SMTP

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.tls import Certificates

EACH = {"smtp": 192 * 1024, "smtps": 448 * 1024}
"""Bytes that a session may take besides what is charged (docs/security.md has them): 64 KiB are
not charged, and it has buffers; under TLS 256 KiB more, and what OpenSSL takes, which is not seen
here."""

# -- when a transaction ends, nothing is charged for it -------------------------------------------

SMALL = 500
"""An allowance in place of 64 KiB, so that little input is enough."""

PEER = ("192.0.2.1", 25)
HELLO = b"EHLO x\r\n"


class Transport:
    """A transport without a socket, whose client reads or does not."""

    def __init__(self) -> None:
        self.closed = False
        self.paused = False
        self.unread = 0

    def write(self, data: bytes) -> None: ...

    def close(self) -> None:
        self.closed = True

    abort = write_eof = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_write_buffer_size(self) -> int:
        return self.unread

    def get_extra_info(self, name: str) -> Any:
        return PEER if name == "peername" else None


class Whims(Discard):
    """Takes, refuses, raises and waits, as the address says."""

    supports_dsn = True

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        if address.startswith("no"):
            return "550 5.7.1 No"
        await self._whim(address)
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        await self._whim(envelope.rcpt_tos[-1])
        return "250 2.0.0 Ok"

    async def _whim(self, address: str) -> None:
        if address.startswith("raise"):
            raise ValueError(address)
        if address.startswith("end"):
            raise asyncio.CancelledError
        await asyncio.sleep(0.001 if address.startswith("wait") else 0)


BIG = b"x" * 70 + b"\r\n"
STEPS = st.one_of(
    st.sampled_from([
        b"EHLO x\r\n", b"HELO x\r\n", b"RSET\r\n", b"NOOP\r\n", b"QUIT\r\n", b"STARTTLS\r\n",
        b"MAIL FROM:<a@b.example>\r\n", b"MAIL FROM:<a@b.example> SMTPUTF8 SIZE=999\r\n",
        b"MAIL FROM:<a b>\r\n", b"AUTH LOGIN\r\n", b"YQ==\r\n", b"DATA\r\n", b".\r\n",
        BIG * 10, BIG * 80, b"DATA\r\n" + BIG * 30 + b".\r\n",
        b"BDAT 100\r\n" + b"x" * 100, b"BDAT 3000\r\n" + b"x" * 1000,
        b"BDAT 3000\r\n" + b"x" * 3000, b"BDAT 9000\r\n" + b"x" * 9000,
        b"BDAT 900 LAST\r\n" + b"x" * 900, b"BDAT 0 LAST\r\n", b"BDAT x\r\n",
        b"x" * 2000, b"\r\n", b"nonsense\r\n",
        "RCPT TO:<ä@d.example> ORCPT=utf-8;ä NOTIFY=NEVER\r\n".encode() * 3,
        *(b"RCPT TO:<%s@d.example>\r\n" % n for n in (b"c", b"no", b"raise", b"end", b"wait")),
    ]),
    st.sampled_from([
        *("blocked", "unblocked", "eof", "lost", "kick", "expired", "way", "shut", "turn"),
    ]),
)  # fmt: skip
ROUTINE = [b"EHLO x\r\n", b"MAIL FROM:<a@b.example>\r\n", b"RCPT TO:<c@d.example>\r\n"]


def act(session: SMTP, transport: Transport, step: str) -> None:
    """Have something other than input happen to a session."""
    if step == "blocked":
        transport.unread = 3000
        session.pause_writing()
    elif step == "unblocked":
        transport.unread = 0
        session.resume_writing()
    elif step == "eof":
        session.eof_received()
    elif step == "lost":
        session.connection_lost(None)
    elif step == "kick":
        session.connection.kick(b"421 4.3.2 kicked\r\n")
    elif step == "expired":
        session.connection.expired(session.loop.time())
    elif step == "way":
        session.connection.give_way(0)
    elif step == "shut":
        session.connection.shut_down()


def held_by_transaction(session: SMTP) -> bool:
    """Whether there is anything that may be charged."""
    connection, dialogue = session.connection, session.connection.dialogue
    envelope = dialogue._envelope
    return bool(
        connection.work is not None
        or connection.blocked
        or dialogue.chunks is not None
        or dialogue.pending
        or dialogue.reading is not None
        or (envelope is not None and (envelope.mail_from or envelope.rcpt_tos))
    )


async def lives_through(steps: list[bytes | str], limit: int, share: int) -> None:
    budget = Budget(limit, share)
    session = SMTP(
        Whims(),
        hostname="mx.example.com",
        budget=budget,
        enable_SMTPUTF8=True,
        auth_require_tls=False,
        authenticator=lambda *_: AuthResult(success=False),
    )
    transport = Transport()
    session.connection_made(transport)  # type: ignore[arg-type]  # as much of one as is needed
    for step in steps:
        if step == "turn":
            while (
                session.connection.task is not None and session.connection.dialogue.awaited is None
            ):
                await asyncio.sleep(0)
        elif isinstance(step, str):
            act(session, transport, step)
        elif not transport.paused:
            session.data_received(step)
        dialogue = session.connection.dialogue
        assert budget.used == dialogue.charged == sum(h.held for h in budget._holdings.values())
        if not held_by_transaction(session):
            assert budget.used == 0, step
        # But for a command that is not complete.
        framed = 0 if dialogue.framer is None else dialogue.framer.held
        held = memory.held(dialogue) - min(framed, LINE_LIMIT)
        # Parts that are small by themselves are not looked at: an envelope, a message, input.
        assert dialogue.charged >= held - 4 * SMALL, step
    session.connection_lost(None)
    while session.connection.task is not None:
        await asyncio.sleep(0)
    assert budget.used == 0
    assert not budget._holdings
    assert not budget._by_client


@pytest.mark.filterwarnings("ignore:Requiring AUTH")
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=st.lists(STEPS, max_size=12),
    routine=st.booleans(),
    limit=st.sampled_from([0, 1500, 1 << 20]),
    share=st.sampled_from([0, 1000]),
)
def test_when_a_transaction_ends_nothing_is_charged_for_it(
    monkeypatch: pytest.MonkeyPatch, steps: list[Any], routine: bool, limit: int, share: int
) -> None:
    monkeypatch.setattr("smtpd_fork.dialogue.memory.ALLOWANCE", SMALL)
    monkeypatch.setattr("smtpd_fork.smtp.connection.HELD_INPUT", 2 * SMALL)
    logging.getLogger("smtpd_fork.session").setLevel(logging.CRITICAL)
    try:
        asyncio.run(lives_through([*(ROUTINE if routine else ()), *steps], limit, share))
    finally:
        logging.getLogger("smtpd_fork.session").setLevel(logging.NOTSET)


async def test_a_packet_is_charged_while_one_of_its_commands_waits() -> None:
    """It is kept until its last command has been looked at, also if that is all that is left."""
    budget = Budget(0)
    session = SMTP(Whims(), hostname="mx.example.com", budget=budget, enable_SMTPUTF8=True)
    session.connection_made(Transport())  # type: ignore[arg-type]  # as much of one as is needed
    packet = ROUTINE[0] + UTF8_MAIL + LONG_RCPT * 300 + b"RCPT TO:<wait@d.example>\r\n"
    session.data_received(packet)
    dialogue = session.connection.dialogue
    await until(lambda: not dialogue.pending)
    assert session.connection.task is not None
    assert budget.used > dialogue.envelope_bytes + len(packet) - ALLOWANCE - 1000
    await until(lambda: session.connection.task is None)
    assert dialogue.framer is None
    session.connection_lost(None)
    assert budget.used == 0


# -- what is held, measured -----------------------------------------------------------------------

SESSIONS = 6
LIMIT = 2 << 20

UTF8_MAIL = b"MAIL FROM:<a@b.example> SMTPUTF8\r\n"
LONG_RCPT = f"RCPT TO:<{'ä' * 120}@{'ü' * 30}.example> ORCPT=utf-8;{'x' * 480}\r\n".encode()
ENVELOPE = HELLO + b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"
SLOW_ENVELOPE = HELLO + b"MAIL FROM:<a@b.example>\r\nRCPT TO:<slow@d.example>\r\n"
TEXT = (b"x" * 78 + b"\r\n") * 12_500
FLOOD = b"NOOP\r\n" * 100_000


class Slow(Discard):
    """Answers when it is let."""

    supports_dsn = True

    def __init__(self) -> None:
        super().__init__()
        self.inside = 0
        self.leave = asyncio.Event()

    async def handle_NOOP(self, *_: Any) -> str:
        return "250 2.0.0 Ok"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if envelope.rcpt_tos[0].startswith("slow"):
            self.inside += 1
            await self.leave.wait()
            self.inside -= 1
        return "250 2.0.0 Ok"


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
    """Send what a client sends, as far as the server takes it."""
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
async def test_what_is_held_is_at_most_the_budget_and_an_allowance_a_session(
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
        assert server._budget.used == 0


def steady(pid: int) -> list[int]:
    """Return what is in a process's memory until that does not change any more."""
    seen = [resident(pid)]
    while len(seen) < 10 or len(set(seen[-10:])) > 1:
        time.sleep(0.1)  # what was sent is read
        seen.append(resident(pid))
    return seen


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
def test_at_default_settings_one_client_holds_what_the_security_page_says(
    scheme: str, tmp_path: Path, certificates: Certificates
) -> None:
    page = read("docs/security.md")
    told = re.search(r"one client, with its (\d+) sessions \| (\d+) MiB; under TLS (\d+) MiB", page)
    assert told is not None
    count, most = int(told[1]), int(told[3 if scheme == "smtps" else 2]) << 20
    sockets: list[socket.socket] = []

    def hold(_: int) -> None:
        sock = socket.create_connection(("127.0.0.1", daemon.port), 20)
        if scheme == "smtps":
            sock = certificates.client.wrap_socket(sock, server_hostname="localhost")
        sockets.append(sock)
        sock.sendall(ENVELOPE + b"DATA\r\n")
        with suppress(OSError):  # of those past its share some are ended
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


async def test_a_message_in_hand_is_charged_until_its_handler_has_ended() -> None:
    """Else clients that send and go would have a slow handler hold what they like."""
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


async def holder(server: Any, size: int, *, source: str = "127.0.0.1") -> Client:
    """Return a client that has sent a chunk, and not the last."""
    client = await Client.to(server.addresses[0], source=source)
    await client.greet()
    await client.say(MAIL, RCPT)
    client.send(b"BDAT %d\r\n" % size + b"x" * size)
    assert (await client.reply()).code == 250
    return client


async def test_a_client_past_its_share_gets_452_and_the_others_are_served() -> None:
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


# -- idle sessions make room ----------------------------------------------------------------------


class Loop:
    """A clock that is set, and timers that are called."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Callable[[], None]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        self.timers.append(partial(call, *args))

    def after(self, seconds: float) -> None:
        """Let time pass, and what is due then happen."""
        self.now += seconds
        due, self.timers = self.timers, []
        for call in due:
            call()


class Holder:
    """A session that holds memory, as far as the budget knows it."""

    def __init__(self, budget: Budget, loop: Loop, host: str, *, busy: bool = False) -> None:
        self.budget = budget
        self.loop: Any = loop
        self.peer = (host, 25)
        self.busy = busy
        self.ended = False

    def hold(self, held: int) -> bool:
        return self.budget.hold(self, held)

    def give_way(self, held: int) -> bool:
        if self.busy:
            return False
        self.ended = True
        self.budget.hold(self, 0)
        return True


def holders(budget: Budget, loop: Loop, *sizes: int) -> list[Holder]:
    """Return sessions of as many clients, that hold so much."""
    found = [Holder(budget, loop, f"192.0.2.{n}") for n in range(len(sizes))]
    for each, size in zip(found, sizes, strict=True):
        assert each.hold(size)
    return found


def test_a_session_that_goes_on_is_not_ended_for_others() -> None:
    budget, loop = Budget(1000), Loop()
    goes_on, idle = holders(budget, loop, 500, 200)
    for size in (550, 610, 680):
        loop.after(20)
        assert goes_on.hold(size)
    assert idle.ended
    assert not goes_on.ended
    loop.after(20)
    assert goes_on.hold(690)  # not a tenth
    loop.after(20)
    loop.after(20)
    assert not goes_on.ended  # there is room enough for others now
    holders(budget, loop, 100)
    loop.after(1)
    assert goes_on.ended


def test_a_session_for_which_a_handler_works_is_not_ended_for_others() -> None:
    budget, loop = Budget(1000), Loop()
    busy = Holder(budget, loop, "192.0.2.9", busy=True)
    busy.hold(700)
    small, large = holders(budget, loop, 40, 60)
    loop.after(30)
    assert (busy.ended, large.ended, small.ended) == (False, True, False)


def test_as_few_sessions_as_possible_are_ended() -> None:
    budget, loop = Budget(1000), Loop()
    sessions = holders(budget, loop, 100, 400, 300, 200)
    loop.after(29)
    assert not any(each.ended for each in sessions)
    loop.after(1)
    assert [each.ended for each in sessions] == [False, True, False, False]
    assert budget.used == 600


def test_nobody_looks_for_idle_sessions_while_there_is_memory() -> None:
    budget, loop = Budget(1000), Loop()
    holders(budget, loop, 700)
    assert loop.timers == []
    (other,) = holders(budget, loop, 100)
    assert len(loop.timers) == 1
    other.hold(0)
    loop.after(1)
    assert loop.timers == []


def test_what_does_not_fit_is_refused_and_what_is_given_back_is_free() -> None:
    budget, loop = Budget(1000, 600), Loop()
    (first,) = holders(budget, loop, 500)
    same = Holder(budget, loop, "192.0.2.0")
    assert not same.hold(200)
    assert same.hold(100)
    assert not budget.has_room(same, 1)
    other = Holder(budget, loop, "192.0.2.7")
    assert other.hold(400)
    assert not other.hold(401)
    for each in (first, same, other):
        each.hold(0)
    assert budget.used == budget.used_by("192.0.2.0") == 0
    assert budget.has_room(same, 600)


@pytest.fixture
def idle_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Have sessions be idle after so many seconds; until then none is."""
    monkeypatch.setattr(budget_module, "LOOK_SECONDS", 0.02)

    def seconds(value: float) -> None:
        monkeypatch.setattr(budget_module, "IDLE_SECONDS", value)

    seconds(math.inf)
    return seconds


async def says_noop_until_it_is_ended(client: Client) -> None:
    """Hold what is held, as long as one is let."""
    while (reply := await client.say("NOOP")).code == 250:
        await asyncio.sleep(0.02)
    assert code_and_enhanced(reply) == (421, "4.3.1")
    await client.close()


async def test_idle_holders_of_the_memory_are_ended_the_largest_first(
    idle_after: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serve(Discard(), max_buffered=1_000_000) as server:
        sizes = {"127.0.0.2": 300_000, "127.0.0.3": 400_000, "127.0.0.4": 350_000}
        clients = {
            source: await holder(server, size, source=source) for source, size in sizes.items()
        }
        # 854,000 bytes are charged: more than three quarters, less than all.
        idle_after(0)
        await says_noop_until_it_is_ended(clients.pop("127.0.0.3"))
        async with await Client.to(server.addresses[0], source="127.0.0.5") as other:
            await other.greet()
            assert (await other.deliver(TEXT[:160_000].decode())).code == 250
        for client in clients.values():
            client.send(b"BDAT 0 LAST\r\n")
            assert (await client.reply()).code == 250
            await client.close()
    told = [text for text in caplog.messages if "ended to make room" in text]
    assert len(told) == 1
    assert " 127.0.0.3:" in told[0]
    assert "memory is short, it was idle and held 33" in told[0]


async def test_clients_that_sit_on_all_memory_do_not_keep_others_out(
    idle_after: Callable[[float], None],
) -> None:
    """Idle sessions are ended also while nobody asks for memory."""
    async with serve(Discard(), max_buffered=1_000_000) as server:
        clients = [await holder(server, 390_000, source=f"127.0.0.{n}") for n in (2, 3, 4)]
        async with await Client.to(server.addresses[0], source="127.0.0.5") as other:
            await other.greet()
            assert (await other.deliver(TEXT[:200_000].decode())).code == 452
            assert (await other.deliver()).code == 250
        idle_after(0)
        ends = [asyncio.ensure_future(says_noop_until_it_is_ended(each)) for each in clients]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        async with await Client.to(server.addresses[0], source="127.0.0.5") as other:
            await other.greet()
            assert (await other.deliver(TEXT[:200_000].decode())).code == 250
        for each, client in zip(ends, clients, strict=True):
            each.cancel()
            await client.close()


async def test_an_envelope_that_is_only_held_is_idle(idle_after: Callable[[float], None]) -> None:
    async with (
        serve(Slow(), max_buffered=800_000) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.reply()
        client.send(HELLO + UTF8_MAIL + LONG_RCPT * 420)
        assert {(await client.reply()).code for _ in range(422)} == {250}
        idle_after(0)
        await says_noop_until_it_is_ended(client)


async def test_a_message_that_comes_a_few_bytes_at_a_time_is_idle(
    idle_after: Callable[[float], None],
) -> None:
    async with (
        serve(Discard(), max_buffered=400_000) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        await client.say(MAIL, RCPT, "DATA")
        client.send(TEXT[:384_000])
        await until(lambda: server._budget.used > 300_000)
        idle_after(0.1)
        reply = asyncio.ensure_future(client.reply())
        while not reply.done():
            client.send(b"x\r\n")
            await asyncio.sleep(0.02)
        assert code_and_enhanced(await reply) == (421, "4.3.1")


async def test_of_a_client_past_its_share_the_largest_idle_session_is_ended(
    idle_after: Callable[[float], None],
) -> None:
    async with serve(Discard(), max_buffered_from_ip=500_000) as server:
        idle = await holder(server, 400_000, source="127.0.0.2")
        other = await holder(server, 450_000, source="127.0.0.3")
        idle_after(0)
        next_one = await holder(server, 300_000, source="127.0.0.2")
        assert code_and_enhanced(await idle.reply()) == (421, "4.3.1")
        assert (await other.say("NOOP")).code == 250
        for client in (idle, other, next_one):
            await client.close()
