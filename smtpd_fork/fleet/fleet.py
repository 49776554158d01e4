"""Fleet: the life of a node: it joins, tells what it holds, asks about clients, and leaves.

One task owns the link and has one message under way; all clients that come meanwhile go into the
next. While there is no answer in time the limits of the node alone apply, and nothing is queued.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import secrets
import threading
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, Self

import msgspec

from smtpd_fork.fleet.episodes import Episodes
from smtpd_fork.fleet.node import Node, Question
from smtpd_fork.fleet.sync import FleetError, decode, encode
from smtpd_fork.gate import FleetShare, Refusal
from smtpd_fork.units import counted
from smtpd_fork.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_fork.fleet.link import Link
    from smtpd_fork.fleet.node import Message
    from smtpd_fork.gate import Gate, Ticket

__all__ = ["Fleet", "State"]

log = logging.getLogger("smtpd_fork.fleet")

TELL_SECONDS = 0.02
"""How long counts wait to be told, so that several go into one message."""

PROBE_SECONDS = 0.25
"""How often a fleet that answers late is asked whether it is faster again."""

ABOUT_SECONDS = 30.0
"""How often a node describes itself: the description is kept for 90 s."""

BACKOFF_SECONDS = (0.1, 5.0)
"""The shortest and the longest wait between two attempts to reach the fleet; the real one is
random below it, so that nodes do not come back all at once."""

JOIN_SECONDS = 1.0
"""How long a start waits for the first answer."""

DOWN_TEXT = "Service not available, try again later"

TURNS = 4
"""Of the loop, that a client whose time is over waits still: an answer may have come unread, if it
was the loop that was late."""


class State(StrEnum):
    """Whether a client can be asked about."""

    DOWN = "down"
    LATE = "late"
    UP = "up"


class Fleet:
    """A gate's node in a fleet. A context manager, in a running loop.

    :param gate: whose limits hold over all nodes
    :param link: to the fleet
    :param node: name of this one, for people
    :param connections: sessions of the fleet at once; 0: no limit
    :param timeout: seconds, at most, that a client waits for the fleet
    :param lease: seconds after which the sessions of a node that is silent are not counted
    :param processes: of this host, between which the connections of the gate are divided
    :param when_down: ``refuse``: no client is admitted while the fleet is out of reach
    :ivar state: whether clients are asked about
    :ivar episodes: of trouble
    """

    def __init__(
        self,
        gate: Gate,
        link: Link,
        *,
        node: str,
        connections: int = 0,
        timeout: float = 0.2,
        lease: float = 6.0,
        processes: int = 1,
        when_down: Literal["local", "refuse"] = "local",
    ) -> None:
        self._gate = gate
        self._link = link
        self._name = node
        self._timeout = timeout
        self._lease = lease
        self._refuses = when_down == "refuse"
        self.state = State.DOWN
        self.episodes = Episodes()
        self.share = FleetShare(gate.lock, connections, processes)
        self.share.owner = self
        gate.join(self.share)
        self.node = Node(f"{node}-{secrets.token_hex(3)}", self.share, lease)
        self._since = time.time()
        self._about_told = 0.0
        self._users = 0
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._telling: asyncio.TimerHandle | None = None
        self._leaving = self._reached = False
        self._waits_in_vain = False  # the last message said that clients wait, and they wait still

    # -- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Join the fleet; if it is out of reach, go on trying, and go by the own limits.

        Servers that share a gate share its fleet: it joins at the first start, and leaves at the
        last stop.
        """
        self._users += 1
        if self._users > 1:
            return
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._wake = asyncio.Event()
        self._tried = asyncio.Event()
        self.share.wake = self._woken
        self._task = self._loop.create_task(self._run())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(JOIN_SECONDS):
                await self._tried.wait()
        if self.state is not State.UP and not self.episodes.reason:
            self._trouble(State.DOWN, "no answer yet")

    async def stop(self) -> None:
        """Leave the fleet: what this node holds is free at once, if the fleet can be told."""
        self._users -= 1
        if self._task is None or self._users > 0:
            return
        self._leaving = True
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                await asyncio.shield(self._task)
        self._task.cancel()
        await asyncio.wait([self._task])
        self._task = None
        for timer in (self._timer, self._telling):
            if timer is not None:
                timer.cancel()
        self._let_in()
        self._gate.join(None)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # -- clients ---------------------------------------------------------------------------------

    def ask(
        self, ticket: Ticket, answered: Callable[[Refusal | None], None]
    ) -> Question | Refusal | None:
        """Ask about a client that the gate has admitted.

        :param answered: called once, with a refusal or None, within the time limit
        :returns: the question, for :meth:`forget`. Else nothing is asked: the client is refused, or
            (None) admitted
        """
        if self.state is not State.UP:
            return self._verdict_alone(exempt=ticket.client.exempt)
        checks = ticket.client.fleet_checks
        if not checks:
            return None
        question = Question(checks, answered, time.monotonic())
        self.node.ask(question)
        self._watch_time()
        self._wake.set()
        return question

    def forget(self, question: Question) -> None:
        """Wait for an answer no longer."""
        self.node.forget(question)

    def _let_in(self) -> None:
        """End all questions: no client waits for an answer any longer."""
        for question in self.node.give_up():
            question.answered(self._verdict_alone())

    def _verdict_alone(self, *, exempt: bool = False) -> Refusal | None:
        """Return the verdict on a client that the limits of this node alone apply to."""
        if self._refuses and not exempt:
            return Refusal("when_fleet_down", "", 0, 0, status="4.3.2", text=DOWN_TEXT)
        self.episodes.admitted()
        return None

    def _watch_time(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout, self._due)

    def _due(self, turns: int = TURNS) -> None:
        """See whether the message under way, or a client, has waited for too long."""
        self._timer = None
        oldest = self.node.oldest()
        if oldest is None or self.state is not State.UP:
            return
        left = oldest + self._timeout - time.monotonic()
        if left > 0:
            self._timer = self._loop.call_later(left, self._due)
        elif turns:
            self._timer = self._loop.call_later(0, self._due, turns - 1)
        else:
            self._late()

    def _trouble(self, state: State, reason: str) -> None:
        """Go by the limits of this node alone."""
        self.state = state
        self.episodes.begin(reason, time.monotonic())
        share = self.share
        if share.connections:
            nodes = self.node.nodes
            share.alone = max(self._gate.count, -(-share.connections // nodes))
        self._let_in()
        self._gate.tell_waiters()

    # -- the link --------------------------------------------------------------------------------

    async def _run(self) -> None:
        shortest, longest = BACKOFF_SECONDS
        wait = shortest
        while not self._leaving:
            self._reached = False
            try:
                await self._link.open()
                self.node.lost()
                await self._talk()
            except FleetError as error:
                self._trouble(State.DOWN, f"{self._link.shown}: {error}")
            except Exception as error:
                log.exception("internal error")
                self._trouble(State.DOWN, f"{type(error).__name__}: {error}")
            finally:
                self._tried.set()
                await self._link.close()
            if not self._leaving:
                wait = shortest if self._reached else min(2 * wait, longest)
                await asyncio.sleep(random.uniform(0, wait))  # noqa: S311 - no secret

    async def _talk(self) -> None:
        """Send messages until the end, or until one fails.

        :raises FleetError: the fleet is out of reach
        """
        listening = self._loop.create_task(self._listen())
        self._about_told = -ABOUT_SECONDS
        try:
            while True:
                await self._exchange()
                if self._leaving:
                    return
                await self._news()
        finally:
            listening.cancel()
            await asyncio.wait([listening])

    async def _exchange(self) -> None:
        """Send one message, and take its answer.

        :raises FleetError: none came, or an error
        """
        message = self._message()
        self._watch_time()
        try:
            async with asyncio.timeout(self._lease):
                data = await self._link.call(message.keys, encode(message.sync))
        except TimeoutError:
            raise FleetError(f"no answer within {self._lease:g} s") from None
        answer = decode(data, len(message.questions))
        in_time = time.monotonic() - message.sent <= self._timeout
        with self._gate.lock:
            decided = self.node.answer(answer)
            self.share.stressed = 4 * answer.sessions >= 3 * self.share.connections > 0
            if in_time:
                self.share.alone = None
        for question, refusal in decided:
            question.answered(refusal)
        if in_time:
            self._in_reach()
        else:
            self._late()
        self._gate.tell_waiters()
        self._waits_in_vain = message.sync.waits and self._gate.full

    def _message(self) -> Message:
        now, about = time.monotonic(), ""
        if now - self._about_told >= ABOUT_SECONDS:
            about, self._about_told = self._about(), now
        gate = self._gate
        with gate.lock:
            limits = gate.limits
            waits = now < self.share.waits_until or (gate.has_waiters and gate.full)
            return self.node.message(
                now,
                gate.count,
                limits.reserve,
                about,
                waits=waits and gate.count < limits.limit_connections,
                leaves=self._leaving,
            )

    def _late(self) -> None:
        self._trouble(State.LATE, f"no answer within {self._timeout * 1000:g} ms")

    def _in_reach(self) -> None:
        if self.state is State.UP:
            return
        self.state, self._reached = State.UP, True
        if self.episodes.reason:
            self.episodes.end(time.monotonic(), self.node.nodes)
        else:
            log.info("joined the fleet: %s", counted(self.node.nodes, "node"))
        self._tried.set()

    async def _news(self) -> None:
        """Wait until there is something to tell or to ask, or the lease has to be renewed."""
        if self.node.has_news() and self.state is State.UP:
            return
        self._wake.clear()
        if self.state is State.LATE:
            await asyncio.sleep(PROBE_SECONDS)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._lease / 3):
                await self._wake.wait()

    async def _listen(self) -> None:
        """Act on hints: each is acted on by one more message."""
        with contextlib.suppress(FleetError):
            while True:
                if await self._link.hint() == "waiting":
                    self.share.others_wait = True  # a spare slot is given up in this message
                self._wake.set()

    # -- the gate --------------------------------------------------------------------------------

    def _woken(self, urgent: bool) -> None:
        """Take note that there is something to tell; the gate calls it, from any thread."""
        if threading.get_ident() == self._thread:
            self._tell_soon(urgent)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._tell_soon, urgent)

    def _tell_soon(self, urgent: bool) -> None:
        if urgent and not self._waits_in_vain:
            # Not at once: a client that waits here takes a slot in this turn of the loop.
            self._loop.call_soon(self._wake.set)
        elif self._telling is None:
            self._telling = self._loop.call_later(TELL_SECONDS, self._tell)

    def _tell(self) -> None:
        self._telling = None
        self._wake.set()

    def _about(self) -> str:
        """Return what this node says of itself."""
        about = {
            "name": self._name,
            "host": os.uname().nodename,
            "pid": os.getpid(),
            "version": __version__,
            "since": round(self._since),
        }
        return msgspec.json.encode(about).decode()
