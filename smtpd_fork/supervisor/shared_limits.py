"""SharedLimits: limits per client, per network and rates, over all processes of a supervisor.

Each process is a node of a fleet (:mod:`smtpd_fork.fleet`), whose ledger the supervisor keeps. When
a process ends, its sessions are removed from the counts. In an upgrade, one of the two supervisors
keeps the ledger for the processes of both.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from smtpd_fork.control_protocol import RequestError
from smtpd_fork.fleet.ledger import Ledger
from smtpd_fork.fleet.sync import FleetError, Sync
from smtpd_fork.supervisor.channel import ChannelClosedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from smtpd_fork.supervisor.channel import Channel
    from smtpd_fork.supervisor.other_supervisor import OtherSupervisor

__all__ = ["ANSWER_SECONDS", "LEASE_SECONDS", "SharedLimits", "SupervisorLink"]

ANSWER_SECONDS = 2.0
"""Maximum time that a new client waits for the supervisor; then the limits of its process alone
apply. Longer than for Redis: a late supervisor is on a busy host, not out of reach."""

LEASE_SECONDS = 60.0
"""Lease of a process: its counts expire if it sends nothing for so long. It may be long, as the
supervisor notices the end of a process at once."""

ASK_SECONDS = 2.0
"""Timeout of :meth:`SupervisorLink.ask`."""

_decoder = msgspec.msgpack.Decoder(Sync)
_encoder = msgspec.msgpack.Encoder()


class Participant(Protocol):
    """A process, or another supervisor on behalf of its processes.

    :ivar nodes: the names of its processes as nodes
    """

    nodes: set[str]

    def notify(self, kind: str, body: Any) -> None:
        """Send a notification; see :meth:`Channel.notify`."""


class SharedLimits:
    """Answers the processes' messages about shared limits, in the supervisor.

    :param send_hint: sends a hint to all participants except the given one
    """

    def __init__(self, send_hint: Callable[[str, Participant], object]) -> None:
        self._ledger = Ledger()
        self._send_hint = send_hint
        self._ledger_owner: OtherSupervisor | None = None
        self._senders: dict[str, Participant] = {}

    @property
    def ledger_owner(self) -> OtherSupervisor | None:
        """The other supervisor, if it keeps the ledger; None: this one keeps it."""
        return self._ledger_owner

    def answer(self, participant: Participant, kind: str, body: Any) -> bytes | Awaitable[bytes]:
        """Return the answer to the message of a process.

        :param kind: ``sync``, or ``fleet`` for the other questions
        """
        sync = _decoder.decode(body[1]) if kind == "sync" else None
        # During the handover of the ledger, the other supervisor may forward a message of this
        # supervisor's process back: it is not a process of that supervisor.
        if sync is not None and self._senders.setdefault(sync.node, participant) is participant:
            participant.nodes.add(sync.node)
        if self._ledger_owner is not None:
            return self._forward(self._ledger_owner, participant, kind, body)
        return self._count(participant, body, sync)

    def _count(self, participant: Participant, body: Any, sync: Sync | None) -> bytes:
        answer: object
        now = time.monotonic_ns() // 1000
        if sync is None:
            question, keys, message = body
            answer = self._ledger.ask(question, keys, message, now)
        else:
            answer = self._ledger.sync(body[0], sync, now)
        data = _encoder.encode(answer)
        for hint in self._ledger.hints:
            self._send_hint(hint, participant)
        return data

    async def _forward(
        self, to: OtherSupervisor, participant: Participant, kind: str, body: Any
    ) -> bytes:
        try:
            data: bytes = await to.ask(kind, body)
        except ChannelClosedError:
            self.supervisor_ended(to)
            answer = self.answer(participant, kind, body)
            return answer if isinstance(answer, bytes) else await answer
        return data

    def remove(self, participant: Participant, nodes: Collection[str] | None = None) -> None:
        """Remove the counts of processes that have ended.

        :param nodes: the names of the processes; None: all processes of *participant*
        """
        nodes = set(participant.nodes if nodes is None else nodes)
        participant.nodes -= nodes
        if self._ledger_owner is not None:
            self._ledger_owner.notify("left", sorted(nodes))
        for node in nodes:
            self._senders.pop(node, None)
            self._ledger.remove(node)

    # -- an upgrade ----------------------------------------------------------------------------

    def use_ledger_of(self, other: OtherSupervisor) -> None:
        """Use the ledger of the old supervisor: forward all messages to it."""
        self._ledger_owner = other

    def hand_over_ledger(self, other: OtherSupervisor) -> None:
        """Hand the ledger over to the new supervisor, and forward all messages to it."""
        other.notify("ledger", self._ledger.snapshot())
        self._ledger, self._ledger_owner = Ledger(), other

    def receive_ledger(self, ledger: bytes) -> None:
        """Keep the ledger of the old supervisor from now on."""
        self._ledger = Ledger.of_snapshot(ledger)
        self._ledger_owner = None

    def supervisor_ended(self, other: OtherSupervisor) -> None:
        """Handle the end of the other supervisor: its processes do not share limits any more.

        If it kept the ledger, this supervisor starts a new one, to which each process then sends
        all its counts.
        """
        if self._ledger_owner is other:
            self._ledger_owner = None
        self.remove(other)


class SupervisorLink:
    """The link of a process to its supervisor; see :class:`smtpd_fork.fleet.link.Link`.

    :param channel: to the supervisor
    """

    description = "the supervisor"

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._hints: asyncio.Queue[str] = asyncio.Queue()

    async def open(self) -> None:
        """Start the channel; a second call has no effect."""
        await self._channel.start()

    async def call(self, keys: list[str], message: bytes) -> object:
        """Send a message, and return its answer; see :meth:`smtpd_fork.fleet.link.Link.call`."""
        try:
            return await self._channel.ask("sync", (keys, message))
        except (ChannelClosedError, RequestError) as error:
            raise FleetError(str(error) or "it has ended") from None

    async def ask(self, question: str, keys: list[str], message: bytes) -> object:
        """Send a question, and return the answer; see :meth:`smtpd_fork.fleet.link.Link.ask`."""
        try:
            return await self._channel.ask("fleet", (question, keys, message), seconds=ASK_SECONDS)
        except (ChannelClosedError, RequestError, TimeoutError) as error:
            raise FleetError(str(error) or "no answer") from None

    def receive_hint(self, hint: str) -> None:
        """Receive a hint from the supervisor."""
        self._hints.put_nowait(hint)

    async def hint(self) -> str:
        """Return the next hint."""
        return await self._hints.get()

    async def close(self) -> None:
        """Do nothing: the channel has other users as well."""
