"""Messenger: sends the messages of a node to its fleet, one at a time, and handles the answers.

One task owns the link. While a message is in flight, new questions are collected for the next
message. A wake-up during a message causes another message afterwards, so no wake-up is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from smtpd_fork.fleet.answer_timeout import AnswerTimeout
from smtpd_fork.fleet.episodes import State
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

SEND_SECONDS = 0.02
"""Delay of changed counts, so that one message contains several."""

PROBE_SECONDS = 0.25
"""Interval of messages while the fleet answers late."""

ABOUT_SECONDS = 30.0
"""Interval at which a node sends its description, which the fleet keeps for 90 s."""

BACKOFF_SECONDS = (0.1, 5.0)
"""First and longest upper bound of the delay between two attempts to reach the fleet. The delay
itself is random, so that nodes do not reconnect all at once."""

OPEN_SECONDS = 5.0
"""Timeout of an attempt to reach the fleet."""

CLOSE_SECONDS = 1.0
"""Timeout for closing a link: the other side may not read any more."""

HINTS_SECONDS = (0.5, 2.0)
"""Bounds of the random delay until hints are subscribed to again after a lost connection."""


class Messenger:
    """Sends the messages of a node over its link.

    :param gate: of the node
    :param share: the gate's share of the fleet
    :param node: builds the messages, and evaluates the answers
    :param link: to the fleet
    :param counts: of clients and answers
    :param describe: returns the description of the node, as JSON
    :param timeout: seconds within which an answer is in time
    :param lease: seconds after which a message without an answer has failed
    :param on_failure: called with the state and the reason whenever the fleet cannot be asked
    :param on_answer: called after each answer in time
    :ivar answer_timeout: monitors the time of messages and questions
    :ivar tried: set as soon as the fleet has answered, or an attempt to reach it has failed
    """

    def __init__(
        self,
        gate: Gate,
        share: FleetShare,
        node: Node,
        link: Link,
        counts: Counts,
        *,
        describe: Callable[[], str],
        timeout: float,
        lease: float,
        on_failure: Callable[[State, str], None],
        on_answer: Callable[[], None],
    ) -> None:
        self._gate = gate
        self._share = share
        self._node = node
        self._link = link
        self._counts = counts
        self._describe = describe
        self._about_sent = 0.0
        self.answer_timeout = AnswerTimeout(
            node.waiting_since, self._on_late, self._on_expired, timeout, lease
        )
        self._on_failure = on_failure
        self._on_answer = on_answer
        self._task: asyncio.Task[None] | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._limit: asyncio.Timeout | None = None  # of the message in flight
        self._reached = False  # whether the fleet has answered in time since the link was opened
        self._sends = False
        self._urgent = False
        self._still_waiting = False  # clients waited at the last message, and wait still

    # -- start and stop --------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the messenger was started and not stopped."""
        return self._task is not None

    def start(self) -> None:
        """Start to send messages, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._wake, self._ending, self.tried = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._share.wake = self.wake
        self._task = self._loop.create_task(self._run())

    async def stop(self) -> None:
        """Send a last message, wait for its answer at most for the timeout, and close the link."""
        task, self._task = self._task, None
        assert task is not None
        self._ending.set()
        self._wake.set()
        try:
            await asyncio.wait([task], timeout=self.answer_timeout.timeout)
        finally:
            task.cancel()
            self.answer_timeout.end()
            if self._send_timer is not None:
                self._send_timer.cancel()
                self._send_timer = None
        await asyncio.wait([task])

    async def _run(self) -> None:
        shortest, longest = BACKOFF_SECONDS
        wait = shortest
        while not self._ending.is_set():
            self._reached = False
            try:
                await self._open()
                await self._send_messages()
            except FleetError as error:
                self._report(f"{self._link.description}: {error}")
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
            self._on_failure(State.DOWN, reason)
            self._node.connection_lost()  # after _on_failure(), which has answered the questions

    async def _open(self) -> None:
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await self._link.open()
        except TimeoutError:
            raise FleetError(f"no answer within {OPEN_SECONDS:g} s") from None
        self._node.connection_lost()

    async def _close(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._link.close()

    async def _pause(self, seconds: float) -> None:
        """Wait for *seconds*, or until :meth:`stop`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ending.wait()

    # -- messages --------------------------------------------------------------------------------

    async def _send_messages(self) -> None:
        """Send messages until :meth:`stop`, or until one fails.

        :raises FleetError: a message has failed
        """
        self._sends = True
        listening = self._loop.create_task(self._listen())
        self._about_sent = -ABOUT_SECONDS
        try:
            while True:
                leaves = self._ending.is_set()
                await self._exchange(leaves=leaves)
                if leaves:
                    return
                await self._wait_for_work()
        finally:
            self._sends = False
            listening.cancel()  # redis-py may swallow it; then the task sees self._sends
            await asyncio.wait([listening], timeout=CLOSE_SECONDS)

    async def _exchange(self, *, leaves: bool) -> None:
        """Send one message, and handle its answer.

        :raises FleetError: there is no answer, or the answer is an error
        """
        self._wake.clear()  # before the message is built: later changes go into the next one
        message = self._message(leaves=leaves)
        self.answer_timeout.overdue = False
        self.answer_timeout.watch()
        try:
            async with asyncio.timeout(None) as self._limit:
                data = await self._link.call(message.keys, encode(message.sync))
        except TimeoutError:
            raise FleetError(f"no answer within {self.answer_timeout.lease:g} s") from None
        finally:
            self._limit = None
        answer, in_time = decode(data, len(message.questions)), not self.answer_timeout.overdue
        with self._gate.lock:
            decided = self._node.answer(answer)
            self._share.stressed = (
                4 * (self._node.others + self._gate.count) >= 3 * self._share.connections > 0
            )
            if in_time:
                self._share.local_slots = None
        self._counts.answered(time.monotonic() - message.sent, [each for _, each in decided])
        for question, refusal in decided:
            question.answer(refusal)
        if in_time and not leaves:
            self._reached = True
            self._on_answer()
            self.tried.set()
        self._gate.tell_waiters()
        self._still_waiting = message.sync.waits and self._gate.full
        needed = self._gate.count + self._gate.limits.reserve + message.sync.waits
        if self._share.others_wait and message.sync.want > needed:
            # This message was built before the hint, or the hint was lost: send another message,
            # which gives up the spare slots.
            self._wake.set()

    def _message(self, *, leaves: bool) -> Message:
        now, about = time.monotonic(), ""
        if now - self._about_sent >= ABOUT_SECONDS:
            about, self._about_sent = self._describe(), now
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

    async def _wait_for_work(self) -> None:
        """Wait until there are questions or changed counts, or the lease must be renewed."""
        if self.answer_timeout.overdue:
            await self._pause(PROBE_SECONDS)
        elif not self._node.has_questions():
            if self._node.has_unsent():
                self._send_soon(urgent=False)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.answer_timeout.lease / 3):
                    await self._wake.wait()

    async def _listen(self) -> None:
        """Receive hints; each causes another message."""
        while self._sends:
            try:
                hint = await self._link.hint()
            except FleetError as error:
                log.debug("hints from the fleet are interrupted: %s", error)
                await asyncio.sleep(random.uniform(*HINTS_SECONDS))  # noqa: S311 - no secret
                continue
            if hint == "waiting":
                self._share.others_wait = True  # the next message gives up spare slots
            self._wake.set()

    # -- time ------------------------------------------------------------------------------------

    def _on_late(self) -> None:
        self.answer_timeout.overdue = True
        self._on_failure(State.LATE, f"no answer within {self.answer_timeout.seconds * 1000:g} ms")
        if self._limit is not None:
            self.answer_timeout.watch()

    def _on_expired(self) -> None:
        if self._limit is not None:
            self._limit.reschedule(self._loop.time())

    # -- wake-ups --------------------------------------------------------------------------------

    def ask(self) -> None:
        """Send the questions of the node, in the next message."""
        self.answer_timeout.watch()
        self._wake.set()

    def wake(self, urgent: bool) -> None:
        """Send changed counts soon; the gate calls it, from any thread.

        :param urgent: whether a client waits for a slot
        """
        if self.in_own_thread:
            self._send_soon(urgent)
        else:
            self.call(self._send_soon, urgent)

    @property
    def in_own_thread(self) -> bool:
        """Whether the caller runs in the thread of the messenger's loop."""
        return threading.get_ident() == self._thread

    def call(self, callback: Callable[[T], None], argument: T) -> None:
        """Schedule a call in the thread of the messenger; no error if its loop is closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, argument)

    def _send_soon(self, urgent: bool) -> None:
        if urgent and not self._still_waiting:
            # In the next iteration: in this one, a client that waits here may get a slot.
            self._loop.call_soon(self._wake.set)
            return
        self._urgent = self._urgent or urgent
        if self._send_timer is None and not self._ending.is_set():
            self._send_timer = self._loop.call_later(SEND_SECONDS, self._send_changes)

    def _send_changes(self) -> None:
        self._send_timer = None
        if self._urgent or self._node.has_unsent():
            self._urgent = False
            self._wake.set()
