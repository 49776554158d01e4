"""The tarpit without a socket and with a set clock: each reply is delayed, nothing is lost."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cuts import Transport, cut, without_ids
from support.handlers import Keep

from smtpd_fork.dialogue import Limits, Shared
from smtpd_fork.dialogue.tarpit import FAULTS, Tarpit, slow_down
from smtpd_fork.smtp import SMTP, Connection
from smtpd_fork.smtp.connection import HELD_INPUT

if TYPE_CHECKING:
    from collections.abc import Callable

DELAY = 5.0

STREAM = (
    b"EHLO x\r\nNOOP\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n"
    b"Subject: x\r\n\r\n..x\r\n.\r\nWHAT\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"
    b"BDAT 3\r\nab\nBDAT 0 LAST\r\nRSET\r\nQUIT\r\n"
)

MESSAGE = (
    *(b"EHLO x\r\n", b"MAIL FROM:<a@b.example>\r\n", b"RCPT TO:<c@d.example>\r\n", b"DATA\r\n"),
    b"Subject: x\r\n\r\nx\r\n.\r\n",
)


class Clock:
    """A loop with a clock that tests set."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.soon: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, call: Callable[..., object], *args: Any) -> None:
        self.soon.append((call, args))


class Sweep:
    """A sweep that checks no sessions."""

    def watch(self, connection: object) -> None:
        pass

    forget = watch


class Slow:
    """A session without a socket, in the tarpit or not."""

    def __init__(self, *, delay: float = DELAY, handler: Any = None, **options: Any) -> None:
        self.handler = handler or Keep()
        self.tarpit = options.pop("tarpit", Tarpit())
        self.clock = Clock()
        loop, sweep, peer = options.pop("loop", self.clock), Sweep(), ("192.0.2.1", 4025)
        shared = Shared(SMTP, self.handler, hostname="mx.example", tarpit=self.tarpit, **options)
        self.connection = Connection.of(shared, loop, sweep, peer=peer)  # type: ignore[arg-type]
        self.transport = Transport()
        if delay:
            slow_down(self.connection.dialogue, delay, "a test")
        self.connection.connection_made(self.transport)  # type: ignore[arg-type] # as one

    def feed(self, *packets: bytes) -> None:
        for packet in packets:
            if not self.transport.closed:
                self.connection.data_received(packet)
            self.settle()

    def settle(self) -> None:
        while self.clock.soon:
            call, args = self.clock.soon.pop(0)
            call(*args)

    def wait(self, seconds: float = DELAY) -> bytes:
        """Advance the clock, and return the data that is sent then."""
        before = len(self.transport.sent)
        self.clock.now += seconds
        if self.connection.deadline <= self.clock.now or self.connection.ends_at <= self.clock.now:
            self.connection.expired(self.clock.now)
        self.settle()
        return bytes(self.transport.sent[before:])

    def end(self) -> tuple[bytes, list[Any]]:
        self.connection.connection_lost(None)
        assert self.tarpit.waiting == 0
        return without_ids(bytes(self.transport.sent)), self.handler.got

    @property
    def phase(self) -> str:
        return self.connection.phase


def test_each_reply_is_sent_after_its_delay_and_not_before() -> None:
    slow = Slow()
    assert slow.phase == "tarpit"
    assert slow.wait(DELAY - 0.1) == b""
    assert slow.wait(0.1).startswith(b"220 ")
    slow.feed(b"NOOP\r\nNOOP\r\n", b"NOOP\r\n")
    assert slow.wait(1.0) == b""
    for _ in range(3):
        assert slow.phase == "tarpit"
        assert slow.tarpit.waiting == 1
        assert slow.wait().count(b"\r\n") == 1
    assert (slow.phase, slow.tarpit.waiting) == ("command", 0)
    slow.end()


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_the_replies_are_those_without_a_tarpit_however_the_stream_is_cut(
    places: list[int],
) -> None:
    slow, fast = Slow(), Slow(delay=0)
    fast.feed(STREAM)
    slow.feed(*cut(STREAM, places))
    delays = 0
    while not slow.transport.closed:
        slow.wait()
        delays += 1
        assert delays < 30
    sent, messages = slow.end()
    assert (sent, messages) == fast.end()
    assert delays == len(re.findall(rb"(?m)^\d\d\d ", sent)) - 1  # not for the last one


def test_input_during_a_delay_is_limited() -> None:
    slow = Slow()
    paused = []
    slow.transport.pause_reading = lambda: paused.append(True)  # type: ignore[method-assign]
    slow.feed(*[b"NOOP\r\n" * 1000] * 11)
    assert paused == [True]
    assert slow.connection.dialogue.pending <= HELD_INPUT + 6000
    slow.end()


def test_the_timeout_of_the_client_begins_with_the_reply() -> None:
    slow = Slow(limits=Limits(command_seconds=30.0))
    slow.wait()
    assert slow.wait(29.0) == b""
    assert slow.wait(1.0).startswith(b"421 4.4.2 ")
    slow.end()


def test_a_session_has_no_more_time_in_the_tarpit() -> None:
    slow = Slow(delay=60, limits=Limits(session_seconds=30.0))
    assert [line[:3] for line in slow.wait(30.0).splitlines()] == [b"220", b"421"]
    slow.end()


@pytest.mark.parametrize("end", ["time", "memory"])
def test_a_session_that_must_end_first_sends_the_reply_to_its_message(end: str) -> None:
    slow = Slow(limits=Limits(session_seconds=30.0))
    for command in MESSAGE:
        slow.wait()
        slow.feed(command)
    assert len(slow.handler.got) == 1
    assert slow.phase == "tarpit"
    before = len(slow.transport.sent)
    if end == "time":
        slow.connection.ends_at = slow.clock.now + 1.0
        slow.wait(1.0)
    else:
        assert slow.connection.end_for_memory(1000)
    sent = bytes(slow.transport.sent[before:]).splitlines()
    assert [line[:3] for line in sent] == [b"250", b"421"]
    assert slow.tarpit.waiting == 0
    slow.end()


@pytest.mark.parametrize("end", ["shut_down", "kick"])
def test_the_last_reply_of_a_session_is_not_delayed(end: str) -> None:
    slow = Slow()
    slow.wait()
    slow.feed(b"NOOP\r\nNOOP\r\n")
    if end == "kick":
        slow.connection.kick(b"421 Go\r\n")
    else:
        slow.connection.shut_down()
    slow.settle()
    sent = slow.transport.sent.split(b"\r\n")
    assert [line[:3] for line in sent] == [b"220", b"250", b"421", b""]
    assert slow.transport.closed
    slow.end()


def test_a_client_that_closes_in_the_tarpit_releases_its_slot() -> None:
    slow = Slow()
    slow.wait()
    slow.feed(b"NOOP\r\nNOOP\r\n")
    slow.connection.eof_received()
    assert slow.transport.sent.count(b"\r\n") == 2
    assert slow.transport.closed
    slow.end()


async def test_a_client_that_has_closed_before_its_reply_is_not_delayed() -> None:
    class Works(Keep):
        async def handle_NOOP(self, server: Any, session: Any, envelope: Any, argument: str) -> str:
            session.tarpit = DELAY
            await asyncio.sleep(0)
            return "250 2.0.0 OK"

    slow = Slow(delay=0, handler=Works(), loop=asyncio.get_running_loop())
    slow.feed(b"EHLO x\r\n", b"NOOP\r\nNOOP\r\n")
    assert slow.phase == "handler"
    slow.connection.eof_received()
    for _ in range(5):
        await asyncio.sleep(0)
    assert slow.transport.sent.endswith(b"250 2.0.0 OK\r\n")
    assert slow.transport.closed
    assert slow.tarpit.waiting == 0
    slow.end()


def test_the_commands_of_a_client_that_does_not_read_are_not_processed() -> None:
    slow = Slow()
    slow.wait()
    slow.feed(b"NOOP\r\nNOOP\r\n")
    slow.transport.get_write_buffer_size = lambda: 1  # type: ignore[attr-defined]
    slow.connection.pause_writing()
    assert slow.wait().count(b"\r\n") == 1
    assert slow.wait() == b""
    slow.connection.resume_writing()
    assert slow.wait().count(b"\r\n") == 1
    slow.end()


def test_the_number_of_delayed_sessions_is_limited() -> None:
    class Small(Tarpit):
        def capacity(self) -> int:
            return 2

    tarpit = Small()
    sessions = [Slow(tarpit=tarpit) for _ in range(3)]
    assert [each.phase for each in sessions] == ["tarpit", "tarpit", "command"]
    assert sessions[2].transport.sent.startswith(b"220")
    sessions[0].wait()
    sessions[2].feed(b"NOOP\r\n")
    assert sessions[2].phase == "tarpit"
    assert tarpit.waiting == 2
    for each in sessions:
        each.connection.connection_lost(None)
    assert tarpit.waiting == 0


@pytest.mark.parametrize("kind", ["errors", "rejects"])
def test_replies_to_a_client_with_many_errors_are_delayed(kind: str) -> None:
    slow = Slow(delay=0, tarpit=Tarpit(DELAY))
    command = b"WHAT\r\n" if kind == "errors" else b"RCPT TO:<a@b.example>\r\n"
    slow.feed(command * FAULTS)
    assert slow.transport.sent.count(b"\r\n") == 1 + FAULTS
    slow.feed(command * 2)
    assert slow.transport.sent.count(b"\r\n") == 1 + FAULTS
    assert slow.wait().startswith(b"50")
    assert slow.wait().startswith(b"50")
    slow.end()


class Says(Keep):
    """Sets the delay as a handler may do."""

    def __init__(self, *delays: Any) -> None:
        super().__init__()
        self.delays = list(delays)

    async def handle_NOOP(self, server: Any, session: Any, envelope: Any, argument: str) -> str:
        session.tarpit = self.delays.pop(0)
        return "250 2.0.0 OK"


@pytest.mark.parametrize(
    ("value", "delay"),
    [(5, 5.0), (0.5, 0.5), (1e9, 60.0), (float("inf"), 60.0)]
    + [(each, 0.0) for each in (0, -1, float("nan"), "5", None)],
)
def test_a_handler_sets_the_delay_and_no_value_breaks_the_session(value: Any, delay: float) -> None:
    slow = Slow(delay=0, handler=Says(value, 0))
    slow.feed(b"EHLO x\r\n")
    before = len(slow.transport.sent)
    slow.feed(b"NOOP\r\n")
    assert slow.connection.dialogue.session.tarpit == delay
    assert (len(slow.transport.sent) > before) == (delay == 0)
    if delay:
        assert slow.wait(delay) == b"250 2.0.0 OK\r\n"
        slow.feed(b"NOOP\r\n")  # and ends it
        assert slow.phase == "command"
    slow.end()


def test_a_delayed_client_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    slow = Slow(delay=0, handler=Says(5, 5, 7))
    slow.feed(b"EHLO x\r\nNOOP\r\nNOOP\r\nNOOP\r\n")
    for _ in range(4):
        slow.wait(7)
    slow.end()
    lines = [each.getMessage() for each in caplog.records if "delayed" in each.getMessage()]
    (line,) = lines
    assert line.endswith("192.0.2.1:4025: replies are delayed by 5 s: set by a handler")
