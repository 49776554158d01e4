"""Messenger: sends the messages of a node to its fleet, one at a time, and takes the answers.

One task owns the link and has one message under way; all clients that come meanwhile go into the
next. A wake-up during a message leads to one more; none is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from smtpd_fork.fleet.episodes import State
from smtpd_fork.fleet.patience import Patience
from smtpd_fork.fleet.sync import FleetError, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_fork.fleet.link import Link
    from smtpd_fork.fleet.node import Message, Node
    from smtpd_fork.fleet.status import Counts
    from smtpd_fork.gate import FleetShare, Gate

__all__ = ["Messenger"]

T = TypeVar("T")

log = logging.getLogger("smtpd_fork.fleet")

TELL_SECONDS = 0.02
"""How long counts wait to be sent, so that several go into one message."""

PROBE_SECONDS = 0.25
"""How often a fleet that answers late is asked whether it is faster again."""

ABOUT_SECONDS = 30.0
"""How often a node describes itself: the description is kept for 90 s."""

BACKOFF_SECONDS = (0.1, 5.0)
"""The shortest and the longest wait between two attempts to reach the fleet; the real one is
random below it, so that nodes do not come back all at once."""

OPEN_SECONDS = 5.0
"""How long an attempt to reach the fleet may take."""

CLOSE_SECONDS = 1.0
"""How long the end of a link may take: the other side may not read any more."""

HINTS_SECONDS = (0.5, 2.0)
"""How soon hints are asked for again after their connection was lost."""


class Messenger:
    """Owns the link of a node.

    :param gate: of the node
    :param share: its part in the fleet
    :param node: builds the messages, and reads the answers
    :param counts: of clients and answers
    :param about: returns what the node says of itself
    :ivar timeout: seconds in which an answer is in time
    :ivar lease: seconds after which an answer is not waited for any more
    :param trouble: called with the state, and the reason, whenever no client can be asked about
    :param in_reach: called after each answer in time
    :ivar tried: set as soon as the fleet has answered, or could not be reached
    """

    def __init__(
        self,
        gate: Gate,
        share: FleetShare,
        node: Node,
        link: Link,
        counts: Counts,
        *,
        about: Callable[[], str],
        timeout: float,
        lease: float,
        trouble: Callable[[State, str], None],
        in_reach: Callable[[], None],
    ) -> None:
        self._gate = gate
        self._share = share
        self._node = node
        self._link = link
        self._counts = counts
        self._about = about
        self._about_told = 0.0
        self.patience = Patience(node.oldest, self._late, self._over, timeout, lease)
        self._trouble = trouble
        self._in_reach = in_reach
        self._task: asyncio.Task[None] | None = None
        self._telling: asyncio.TimerHandle | None = None
        self._limit: asyncio.Timeout | None = None  # of the message under way
        self._reached = False  # the fleet has answered in time since the link was opened
        self._talks = False
        self._urgent = False
        self._waits_in_vain = False  # the last message said that clients wait, and they wait still

    # -- life ------------------------------------------------------------------------------------

    @property
    def runs(self) -> bool:
        """Whether it was started, and not stopped."""
        return self._task is not None

    def start(self) -> None:
        """Begin to send messages, in the loop that runs."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._wake, self._ending, self.tried = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._share.wake = self.wake
        self._task = self._loop.create_task(self._run())

    async def stop(self) -> None:
        """Send a last message, if there is an answer in time, and close the link."""
        task, self._task = self._task, None
        assert task is not None
        self._ending.set()
        self._wake.set()
        try:
            await asyncio.wait([task], timeout=self.patience.timeout)
        finally:
            task.cancel()
            self.patience.end()
            if self._telling is not None:
                self._telling.cancel()
                self._telling = None
        await asyncio.wait([task])

    async def _run(self) -> None:
        shortest, longest = BACKOFF_SECONDS
        wait = shortest
        while not self._ending.is_set():
            self._reached = False
            try:
                await self._open()
                await self._talk()
            except FleetError as error:
                self._report(f"{self._link.shown}: {error}")
            except Exception as error:
                log.exception("internal error")
                self._report(f"{type(error).__name__}: {error}")
            finally:
                self.tried.set()
                await self._close()
            wait = shortest if self._reached else min(2 * wait, longest)
            await self._pause(random.uniform(0, wait))  # noqa: S311 - no secret

    def _report(self, reason: str) -> None:
        if not self._ending.is_set():
            self._trouble(State.DOWN, reason)
            self._node.lost()  # after its clients were let in

    async def _open(self) -> None:
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await self._link.open()
        except TimeoutError:
            raise FleetError(f"no answer within {OPEN_SECONDS:g} s") from None
        self._node.lost()

    async def _close(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._link.close()

    async def _pause(self, seconds: float) -> None:
        """Wait; not when the end has come."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ending.wait()

    # -- messages --------------------------------------------------------------------------------

    async def _talk(self) -> None:
        """Send messages until the end, or until one fails.

        :raises FleetError: the fleet is out of reach
        """
        self._talks = True
        listening = self._loop.create_task(self._listen())
        self._about_told = -ABOUT_SECONDS
        try:
            while True:
                leaves = self._ending.is_set()
                await self._exchange(leaves=leaves)
                if leaves:
                    return
                await self._news()
        finally:
            self._talks = False
            listening.cancel()  # may be lost in a call of redis-py: the task looks for itself
            await asyncio.wait([listening], timeout=CLOSE_SECONDS)

    async def _exchange(self, *, leaves: bool) -> None:
        """Send one message, and take its answer.

        :raises FleetError: none came, or an error
        """
        self._wake.clear()  # before the message: what happens from now on is for the next
        message = self._message(leaves=leaves)
        self.patience.overdue = False
        self.patience.watch()
        try:
            async with asyncio.timeout(None) as self._limit:
                data = await self._link.call(message.keys, encode(message.sync))
        except TimeoutError:
            raise FleetError(f"no answer within {self.patience.lease:g} s") from None
        finally:
            self._limit = None
        answer, in_time = decode(data, len(message.questions)), not self.patience.overdue
        with self._gate.lock:
            decided = self._node.answer(answer)
            self._share.stressed = (
                4 * (self._node.others + self._gate.count) >= 3 * self._share.connections > 0
            )
            if in_time:
                self._share.alone = None
        self._counts.answered(time.monotonic() - message.sent, [each for _, each in decided])
        for question, refusal in decided:
            question.answer(refusal)
        if in_time and not leaves:
            self._reached = True
            self._in_reach()
            self.tried.set()
        self._gate.tell_waiters()
        self._waits_in_vain = message.sync.waits and self._gate.full

    def _message(self, *, leaves: bool) -> Message:
        now, about = time.monotonic(), ""
        if now - self._about_told >= ABOUT_SECONDS:
            about, self._about_told = self._about(), now
        gate = self._gate
        with gate.lock:
            limits = gate.limits
            waits = now < self._share.waits_until or (gate.has_waiters and gate.full)
            return self._node.message(
                now,
                gate.count,
                limits.reserve,
                about,
                waits=waits and gate.count < limits.limit_connections,
                leaves=leaves,
            )

    async def _news(self) -> None:
        """Wait until there is something to tell or to ask, or the lease has to be renewed."""
        if self.patience.overdue:
            await self._pause(PROBE_SECONDS)
        elif not self._node.has_questions():
            if self._node.has_news():
                self._tell_soon(urgent=False)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.patience.lease / 3):
                    await self._wake.wait()

    async def _listen(self) -> None:
        """Act on hints: each is acted on by one more message."""
        while self._talks:
            try:
                hint = await self._link.hint()
            except FleetError as error:
                log.debug("no hints from the fleet for a moment: %s", error)
                await asyncio.sleep(random.uniform(*HINTS_SECONDS))  # noqa: S311 - no secret
                continue
            if hint == "waiting":
                self._share.others_wait = True  # a spare slot is given up in this message
            self._wake.set()

    # -- time ------------------------------------------------------------------------------------

    def _late(self) -> None:
        self.patience.overdue = True
        self._trouble(State.LATE, f"no answer within {self.patience.seconds * 1000:g} ms")
        if self._limit is not None:
            self.patience.watch()

    def _over(self) -> None:
        if self._limit is not None:
            self._limit.reschedule(self._loop.time())

    # -- wake-ups --------------------------------------------------------------------------------

    def ask(self) -> None:
        """Send the questions of the node."""
        self.patience.watch()
        self._wake.set()

    def wake(self, urgent: bool) -> None:
        """Take note that there is something to tell; the gate calls it, from any thread."""
        if self.is_here:
            self._tell_soon(urgent)
        else:
            self.call(self._tell_soon, urgent)

    @property
    def is_here(self) -> bool:
        """Whether this is the thread of the messenger."""
        return threading.get_ident() == self._thread

    def call(self, callback: Callable[[T], None], argument: T) -> None:
        """Call *callback* in the thread of the messenger, soon; not if its loop is closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, argument)

    def _tell_soon(self, urgent: bool) -> None:
        if urgent and not self._waits_in_vain:
            # Not at once: a client that waits here takes a slot in this turn of the loop.
            self._loop.call_soon(self._wake.set)
            return
        self._urgent = self._urgent or urgent
        if self._telling is None and not self._ending.is_set():
            self._telling = self._loop.call_later(TELL_SECONDS, self._tell)

    def _tell(self) -> None:
        self._telling = None
        if self._urgent or self._node.has_news():
            self._urgent = False
            self._wake.set()
