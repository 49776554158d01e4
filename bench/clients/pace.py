"""Offers messages at a steady pace, and times the replies that decide about them.

Each line on standard input is a duration in seconds. A reply is timed from the write of RCPT if it
refuses the recipient, and otherwise from the write of the final dot. A message is offered when it
is due, not when the one before it has been answered.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import uvloop

from bench.clients.dialogue import HOST, TIMEOUT, answer, options

if TYPE_CHECKING:
    from collections.abc import Callable

LINE = b"X" * 78 + b"\r\n"
TRANSACTION = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\n"
REFUSED, ACCEPTED = b"451", b"250"


class Figures:
    """Reply times of one run, in milliseconds.

    :ivar first: time.monotonic() of the first accepted message; 0: none was accepted
    :ivar late: the delay between the time at which each message was due and its start
    :ivar other: replies that are neither 250 nor 451
    """

    def __init__(self) -> None:
        self.refused: list[float] = []
        self.accepted: list[float] = []
        self.late: list[float] = []
        self.first = 0.0
        self.other = 0

    def add(self, reply: bytes, began: float) -> None:
        """Record a reply that decides about a message."""
        now = time.monotonic()
        if reply.startswith(REFUSED):
            self.refused.append(1000 * (now - began))
        elif reply.startswith(ACCEPTED):
            self.accepted.append(1000 * (now - began))
            self.first = self.first or now
        else:
            self.other += 1

    def answer(self, seconds: float) -> None:
        """Send the results to the parent process."""
        answer(
            refused=len(self.refused),
            accepted=len(self.accepted),
            other=self.other,
            rate=len(self.late) / seconds,
            refused_p50=_percentile(self.refused, 50),
            refused_p99=_percentile(self.refused, 99),
            accepted_p99=_percentile(self.accepted, 99),
            late_p99=_percentile(self.late, 99),
            first=self.first,
        )


def _percentile(values: list[float], number: int) -> float:
    if len(values) < 2:  # noqa: PLR2004 - quantiles() needs at least two
        return 0.0
    return statistics.quantiles(values, n=100, method="inclusive")[number - 1]


class Session(asyncio.Protocol):
    """A connection that offers one message after another.

    :param idle: the collection that the connection adds itself to while it has no message
    :ivar figures: the object that records the reply times
    """

    figures: Figures

    def __init__(self, message: bytes, idle: asyncio.Queue[Session]) -> None:
        self._message = message
        self._idle = idle
        self._unread = b""
        self._began = 0.0
        self._next: deque[Callable[[bytes], None]] = deque([self._greeted])
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Process the replies in *data*."""
        *lines, self._unread = (self._unread + data).split(b"\r\n")
        for line in lines:
            if line[3:4] != b"-":
                self._next.popleft()(line)

    def offer(self, figures: Figures) -> None:
        """Start a message."""
        self.figures = figures
        self._send(TRANSACTION, self._ignored, self._asked)

    def _send(self, text: bytes, *replies: Callable[[bytes], None]) -> None:
        self._began = time.monotonic()
        self._next.extend(replies)
        self._transport.write(text)

    def _greeted(self, _: bytes) -> None:
        self._send(b"EHLO client.example\r\n", self._done)

    def _ignored(self, _: bytes) -> None:
        pass

    def _asked(self, reply: bytes) -> None:
        if reply.startswith(ACCEPTED):
            self._send(b"DATA\r\n", self._invited)
        else:
            self.figures.add(reply, self._began)
            self._send(b"RSET\r\n", self._done)

    def _invited(self, _: bytes) -> None:
        self._send(self._message, self._decided)

    def _decided(self, reply: bytes) -> None:
        self.figures.add(reply, self._began)
        self._done(reply)

    def _done(self, _: bytes) -> None:
        self._idle.put_nowait(self)


async def _open(port: int, count: int, message: bytes) -> asyncio.Queue[Session]:
    """Return idle sessions."""
    loop = asyncio.get_running_loop()
    idle: asyncio.Queue[Session] = asyncio.Queue()
    for _ in range(count):
        await loop.create_connection(lambda: Session(message, idle), HOST, port)
    await _all_idle(idle, count)
    return idle


async def _all_idle(idle: asyncio.Queue[Session], count: int) -> None:
    async with asyncio.timeout(TIMEOUT):
        sessions = [await idle.get() for _ in range(count)]
    for session in sessions:
        idle.put_nowait(session)


async def _offer(idle: asyncio.Queue[Session], rate: int, seconds: float) -> None:
    """Offer messages, wait for the last replies, and send the results."""
    sessions = idle.qsize()
    figures = Figures()
    begin = time.monotonic()
    for number in range(round(rate * seconds)):
        due = begin + number / rate
        if (left := due - time.monotonic()) > 0:
            await asyncio.sleep(left)
        if not idle.empty():
            figures.late.append(1000 * (time.monotonic() - due))
            idle.get_nowait().offer(figures)
    await _all_idle(idle, sessions)
    figures.answer(seconds)


def main() -> None:
    """Open the connections, and offer messages for the duration in each line."""
    given = options()
    message = b"Subject: measured\r\n\r\n" + LINE * (given["size"] // len(LINE)) + b".\r\n"
    gc.disable()  # A garbage collection would add to the time of a reply.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        idle = runner.run(_open(given["port"], given["connections"], message))
        answer(connections=idle.qsize())
        for line in sys.stdin:
            runner.run(_offer(idle, given["rate"], float(line)))


if __name__ == "__main__":
    main()
