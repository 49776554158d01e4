"""Fleet: a gate's node in a fleet. It joins, asks about clients, and leaves.

While there is no answer in time the limits of the node alone apply, and nothing is queued.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from typing import TYPE_CHECKING, Literal, Self

import msgspec

from smtpd_fork.fleet.auth_attempts import tell_auth_attempt
from smtpd_fork.fleet.denials import FleetDenials
from smtpd_fork.fleet.episodes import Episodes, State
from smtpd_fork.fleet.messenger import Messenger
from smtpd_fork.fleet.node import Node
from smtpd_fork.fleet.question import Question
from smtpd_fork.fleet.status import Counts
from smtpd_fork.fleet.sync import FleetError
from smtpd_fork.fleet.view import ViewOf, view_of
from smtpd_fork.gate import FleetShare, Refusal
from smtpd_fork.units import counted
from smtpd_fork.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smtpd_fork.fleet.auth_attempts import AuthCount
    from smtpd_fork.fleet.link import Link
    from smtpd_fork.gate import Gate, Ticket
    from smtpd_fork.gate.rules.fleet import FleetCheck

__all__ = ["Fleet", "State"]

log = logging.getLogger("smtpd_fork.fleet")

JOIN_SECONDS = 1.0
"""How long a start waits for the first answer."""

DOWN_TEXT = "Service not available, try again later"


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
    :ivar counts: of clients and answers
    :ivar denials: networks that are denied at run time
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
        self.state = State.DOWN
        self.episodes = Episodes(when_down)
        self.counts = Counts()
        self.share = FleetShare(gate.lock, connections, processes)
        self.share.owner = self
        self.share.ask = self.ask
        gate.join(self.share)
        self.node = Node(f"{node}-{secrets.token_hex(3)}", self.share, lease)
        self._messenger = Messenger(
            gate,
            self.share,
            self.node,
            link,
            self.counts,
            about=self._about,
            timeout=timeout,
            lease=lease,
            trouble=self._trouble,
            in_reach=self._in_reach,
        )
        self.denials = FleetDenials(gate.denials, link, node)
        self._since = time.time()
        self._users = 0

    # -- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Join the fleet; if it is out of reach, go on trying, and go by the own limits.

        Servers that share a gate share its fleet: it joins at the first start, and leaves at the
        last stop.
        """
        self._users += 1
        if self._users > 1:
            return
        if self._gate.slots.share is not self.share:  # it has left before
            self._gate.join(self.share)
        self.share.closing = False
        self.denials.start()
        self._messenger.start()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(JOIN_SECONDS):
                    await self._messenger.tried.wait()
                    if self.state is State.UP:
                        await self.denials.read()
        except BaseException:
            await self.stop()
            raise
        if self.state is not State.UP and not self.episodes.reason:
            self._trouble(State.DOWN, "no answer yet")

    def withdraw(self) -> None:
        """Give up the free slots of the fleet: no client is admitted here any more."""
        if self._users == 1:
            self.share.closing = True
            self.share.wake(True)

    def come_back(self) -> None:
        """Admit clients again after :meth:`withdraw`; no error if there was none."""
        if self.share.closing:
            self.share.closing = False
            self.share.wake(True)

    async def stop(self) -> None:
        """Leave the fleet: what this node holds is free at once, if the fleet is in reach.

        No error if it was not started, or has left.
        """
        self._users = max(0, self._users - 1)
        if self._users or not self._messenger.runs:
            return
        try:
            await self.denials.stop()
            await self._messenger.stop()
        finally:
            self.state = State.DOWN
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
        if self._messenger.is_here:
            question = Question(checks, answered, time.monotonic())
            self._ask(question)
        else:  # a server in another thread, that shares the gate
            loop = asyncio.get_running_loop()
            question = Question(checks, answered, time.monotonic(), loop)
            self._messenger.call(self._ask, question)
        return question

    def _ask(self, question: Question) -> None:
        if self.state is State.UP:
            self.node.ask(question)
            self._messenger.ask()
        else:
            question.answer(self._verdict_alone())

    def forget(self, question: Question) -> None:
        """Wait for an answer no longer."""
        question.forgotten = True
        if self._messenger.is_here:
            self.node.forget(question)
        else:
            self._messenger.call(self.node.forget, question)

    async def share_auth_attempt(
        self, count: AuthCount, name: bytes, attempt: bytes, key: bytes
    ) -> tuple[bytes, dict[bytes, float]]:
        """Tell all nodes of an attempt to authenticate; see :func:`tell_auth_attempt`.

        :returns: their key, and the attempts of the name at all nodes; *key*, and none, if the
            fleet has no answer in time
        """
        # A server in another thread, that shares the gate, counts by itself.
        if self.state is State.UP and self._messenger.is_here:
            with contextlib.suppress(FleetError, TimeoutError):
                async with asyncio.timeout(self._messenger.patience.timeout):
                    return await tell_auth_attempt(self._link, count, name, attempt, key)
        return key, {}

    def _let_in(self) -> None:
        """End all questions: no client waits for an answer any longer."""
        for question in self.node.give_up():
            question.answer(self._verdict_alone())

    def _verdict_alone(self, *, exempt: bool = False) -> Refusal | None:
        """Return the verdict on a client that the limits of this node alone apply to."""
        if self.episodes.when_down == "refuse" and not exempt:
            return Refusal("when_fleet_down", "", 0, 0, status="4.3.2", text=DOWN_TEXT)
        self.episodes.admitted()
        self.counts.outcomes["alone"] += 1
        return None

    def change(
        self,
        *,
        connections: int,
        timeout: float,
        lease: float,
        when_down: Literal["local", "refuse"],
    ) -> None:
        """Go by other settings from now on."""
        self.episodes.when_down = when_down
        patience = self._messenger.patience
        patience.timeout, patience.lease = timeout, lease
        with self._gate.lock:
            self.node.lease = lease
            self.share.connections = connections
        if self.state is not State.UP:
            self._go_alone()
        self.share.wake(True)
        self._gate.tell_waiters()

    # -- what is ---------------------------------------------------------------------------------

    @property
    def admits(self) -> bool:
        """Whether clients are admitted at all: they may not be while the fleet is out of reach."""
        return self.state is State.UP or self.episodes.when_down == "local"

    @property
    def sessions(self) -> int:
        """Sessions of this node."""
        return self._gate.count

    async def view(self, checks: Sequence[FleetCheck] = ()) -> ViewOf:
        """Return the nodes, and what the fleet counts for *checks*.

        :raises FleetError: it cannot be asked
        """
        return await view_of(self._link, checks)

    # -- what the messenger reports --------------------------------------------------------------

    def _trouble(self, state: State, reason: str) -> None:
        """Go by the limits of this node alone."""
        self.state = state
        self.episodes.begin(reason, time.monotonic())
        self._go_alone()
        self._let_in()
        self._gate.tell_waiters()

    def _go_alone(self) -> None:
        """Take this node's part of the connections of the fleet."""
        share = self.share
        if share.connections:
            share.alone = max(self._gate.count, -(-share.connections // self.node.nodes))

    def _in_reach(self) -> None:
        self.denials.seen(self.node.denials)
        if self.state is State.UP:
            return
        self.state = State.UP
        if self.episodes.reason:
            self.episodes.end(time.monotonic(), self.node.nodes)
        else:
            log.info("joined the fleet: %s", counted(self.node.nodes, "node"))

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
