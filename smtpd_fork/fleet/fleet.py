"""Fleet: makes a gate a node of a fleet: it joins, asks about clients, and leaves.

While the fleet does not answer in time, only the limits of the node apply, and no client waits.
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

from smtpd_fork.fleet.auth_attempts import send_auth_attempt
from smtpd_fork.fleet.denials import FleetDenials
from smtpd_fork.fleet.episodes import Episodes, State
from smtpd_fork.fleet.messenger import Messenger
from smtpd_fork.fleet.node import Node
from smtpd_fork.fleet.question import Question
from smtpd_fork.fleet.status import Counts
from smtpd_fork.fleet.sync import FleetError
from smtpd_fork.fleet.view import FleetView, read_view
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
"""How long :meth:`Fleet.start` waits for the first answer."""

DOWN_TEXT = "Service not available, try again later"


class Fleet:
    """The node of a gate in a fleet. An asynchronous context manager.

    :param gate: the gate whose limits apply to all nodes together
    :param link: to the fleet
    :param node: name of this node, for administrators
    :param connections: maximum sessions of all nodes together; 0: no limit
    :param timeout: maximum seconds that a client waits for the fleet
    :param lease: seconds after which the sessions of a node that sends nothing are not counted
    :param processes: number of processes of this host that share the gate's connection slots
    :param when_down: ``refuse``: admit no client while the fleet is out of reach
    :ivar state: the state of the fleet
    :ivar episodes: the times during which the fleet was out of reach
    :ivar counts: of the questions about clients
    :ivar denials: exchanges the networks that are denied at run time
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
            describe=self._describe,
            timeout=timeout,
            lease=lease,
            on_failure=self._on_failure,
            on_answer=self._on_answer,
        )
        self.denials = FleetDenials(gate.denials, link, node)
        self._since = time.time()
        self._users = 0

    # -- start and stop --------------------------------------------------------------------------

    async def start(self) -> None:
        """Join the fleet. If it is out of reach, keep trying; until then the node's limits apply.

        Servers that share a gate share its fleet: the first start joins, and the last stop leaves.
        """
        self._users += 1
        if self._users > 1:
            return
        if self._gate.slots.share is not self.share:  # it was stopped, and is started again
            self._gate.join(self.share)
        self.share.closing = False
        self.denials.start()
        self._messenger.start()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(JOIN_SECONDS):
                    await self._messenger.tried.wait()
                    if self.state is State.UP:
                        await self.denials.synchronize()
        except BaseException:
            await self.stop()
            raise
        if self.state is not State.UP and not self.episodes.reason:
            self._on_failure(State.DOWN, "no answer yet")

    def withdraw(self) -> None:
        """Give the free slots back to the fleet: this node admits no more clients."""
        if self._users == 1:
            self.share.closing = True
            self.share.wake(True)

    def resume(self) -> None:
        """Admit clients again after :meth:`withdraw`; no error without one."""
        if self.share.closing:
            self.share.closing = False
            self.share.wake(True)

    async def stop(self) -> None:
        """Leave the fleet. If it can be reached, the slots of this node are free at once.

        No error if the node was not started, or has left.
        """
        self._users = max(0, self._users - 1)
        if self._users or not self._messenger.running:
            return
        try:
            await self.denials.stop()
            await self._messenger.stop()
        finally:
            self.state = State.DOWN
            self._answer_all_locally()
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
        """Ask the fleet about a client that the gate has admitted.

        :param answered: called once, with a refusal or None, within the timeout
        :returns: the question, for :meth:`cancel`. If no question is sent: a refusal, or None if
            the client is admitted
        """
        if self.state is not State.UP:
            return self._local_verdict(exempt=ticket.client.exempt)
        checks = ticket.client.fleet_checks
        if not checks:
            return None
        if self._messenger.in_own_thread:
            question = Question(checks, answered, time.monotonic())
            self._ask(question)
        else:  # a server in another thread shares the gate
            loop = asyncio.get_running_loop()
            question = Question(checks, answered, time.monotonic(), loop)
            self._messenger.call(self._ask, question)
        return question

    def _ask(self, question: Question) -> None:
        if self.state is State.UP:
            self.node.ask(question)
            self._messenger.ask()
        else:
            question.answer(self._local_verdict())

    def cancel(self, question: Question) -> None:
        """Cancel a question: its callback is not called."""
        question.cancelled = True
        if self._messenger.in_own_thread:
            self.node.cancel(question)
        else:
            self._messenger.call(self.node.cancel, question)

    async def share_auth_attempt(
        self, count: AuthCount, name: bytes, attempt: bytes, key: bytes
    ) -> tuple[bytes, dict[bytes, float]]:
        """Share an attempt to authenticate with all nodes; see :func:`send_auth_attempt`.

        :returns: their key, and the attempts of the name at all nodes; *key*, and none, if the
            fleet has no answer in time
        """
        # A server in another thread, that shares the gate, counts by itself.
        if self.state is State.UP and self._messenger.in_own_thread:
            with contextlib.suppress(FleetError, TimeoutError):
                async with asyncio.timeout(self._messenger.answer_timeout.timeout):
                    return await send_auth_attempt(self._link, count, name, attempt, key)
        return key, {}

    def _answer_all_locally(self) -> None:
        """Answer all questions without the fleet, so that no client waits any longer."""
        for question in self.node.end_all_questions():
            question.answer(self._local_verdict())

    def _local_verdict(self, *, exempt: bool = False) -> Refusal | None:
        """Return the refusal, or None, for a client while the fleet is out of reach."""
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
        """Apply changed settings."""
        self.episodes.when_down = when_down
        answer_timeout = self._messenger.answer_timeout
        answer_timeout.timeout, answer_timeout.lease = timeout, lease
        with self._gate.lock:
            self.node.lease = lease
            self.share.connections = connections
        if self.state is not State.UP:
            self._use_local_slots()
        self.share.wake(True)
        self._gate.tell_waiters()

    # -- state -----------------------------------------------------------------------------------

    @property
    def admits(self) -> bool:
        """Whether clients can be admitted; False if the fleet is out of reach, with ``refuse``."""
        return self.state is State.UP or self.episodes.when_down == "local"

    @property
    def sessions(self) -> int:
        """The number of sessions of this node."""
        return self._gate.count

    async def view(self, checks: Sequence[FleetCheck] = ()) -> FleetView:
        """Return the nodes, and the counts of the fleet for *checks*.

        :raises FleetError: the fleet does not answer
        """
        return await read_view(self._link, checks)

    # -- callbacks of the messenger --------------------------------------------------------------

    def _on_failure(self, state: State, reason: str) -> None:
        """Use the limits of this node only, until the next answer in time."""
        self.state = state
        self.episodes.begin(reason, time.monotonic())
        self._use_local_slots()
        self._answer_all_locally()
        self._gate.tell_waiters()

    def _use_local_slots(self) -> None:
        """Set the slots for the time without the fleet: an equal share, or the open sessions."""
        share = self.share
        if share.connections:
            share.local_slots = max(self._gate.count, -(-share.connections // self.node.nodes))

    def _on_answer(self) -> None:
        self.denials.check_version(self.node.denials)
        if self.state is State.UP:
            return
        self.state = State.UP
        if self.episodes.reason:
            self.episodes.end(time.monotonic(), self.node.nodes)
        else:
            log.info("joined the fleet: %s", counted(self.node.nodes, "node"))

    def _describe(self) -> str:
        """Return the description of this node, as JSON."""
        about = {
            "name": self._name,
            "host": os.uname().nodename,
            "pid": os.getpid(),
            "version": __version__,
            "since": round(self._since),
        }
        return msgspec.json.encode(about).decode()
