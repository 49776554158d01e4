"""SharedLimits: limits of clients, networks and rates over all processes of a supervisor.

A process is a node of a fleet (:mod:`smtpd_fork.fleet`), and the supervisor keeps the ledger. What
a process holds is free when it ends. In an upgrade one of the two supervisors keeps the ledger for
the processes of both.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from smtpd_fork.control_protocol import RequestError
from smtpd_fork.fleet.ledger import Ledger
from smtpd_fork.fleet.sync import FleetError, Sync
from smtpd_fork.supervisor.line import LineClosedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from smtpd_fork.supervisor.line import Line
    from smtpd_fork.supervisor.other_supervisor import OtherSupervisor

__all__ = ["LEASE_SECONDS", "SharedLimits", "SupervisorLink"]

LEASE_SECONDS = 60.0
"""For which the word of a process counts that is silent; the supervisor sees its end at once."""

ASK_SECONDS = 2.0
"""For the answer to a question beside the call under way."""

_decoder = msgspec.msgpack.Decoder(Sync)
_encoder = msgspec.msgpack.Encoder()


class Teller(Protocol):
    """What tells and asks: a process, or another supervisor for its processes.

    :ivar nodes: their names
    """

    nodes: set[str]

    def tell(self, word: str, body: Any) -> None:
        """Tell it."""


class SharedLimits:
    """The supervisor's end.

    :param hint: is called with a hint, and with whom it does not concern
    """

    def __init__(self, hint: Callable[[str, Teller], object]) -> None:
        self._ledger = Ledger()
        self._hint = hint
        self._counted_by: OtherSupervisor | None = None

    @property
    def counted_by(self) -> OtherSupervisor | None:
        """The other supervisor, if that keeps the ledger."""
        return self._counted_by

    def answer(self, teller: Teller, word: str, body: Any) -> bytes | Awaitable[bytes]:
        """Return the answer to the message of a process.

        :param word: ``sync``, or ``fleet`` for another question
        """
        sync = _decoder.decode(body[1]) if word == "sync" else None
        if sync is not None:
            teller.nodes.add(sync.node)
        if self._counted_by is not None:
            return self._forward(self._counted_by, teller, word, body)
        return self._count(teller, body, sync)

    def _count(self, teller: Teller, body: Any, sync: Sync | None) -> bytes:
        answer: object
        now = time.monotonic_ns() // 1000
        if sync is None:
            question, keys, message = body
            answer = self._ledger.ask(question, keys, message, now)
        else:
            answer = self._ledger.sync(body[0], sync, now)
        data = _encoder.encode(answer)
        for hint in self._ledger.hints:
            self._hint(hint, teller)
        return data

    async def _forward(self, to: OtherSupervisor, teller: Teller, word: str, body: Any) -> bytes:
        try:
            data: bytes = await to.ask(word, body)
        except LineClosedError:
            self.lose(to)
            return await self._answered(teller, word, body)
        return data

    async def _answered(self, teller: Teller, word: str, body: Any) -> bytes:
        answer = self.answer(teller, word, body)
        return answer if isinstance(answer, bytes) else await answer

    def leave(self, teller: Teller, nodes: Collection[str] | None = None) -> None:
        """Forget processes that have ended; None: all of *teller*."""
        nodes = set(teller.nodes if nodes is None else nodes)
        teller.nodes -= nodes
        if self._counted_by is not None:
            self._counted_by.tell("left", sorted(nodes))
        for node in nodes:
            self._ledger.remove(node)

    # -- an upgrade ----------------------------------------------------------------------------

    def let_count(self, other: OtherSupervisor) -> None:
        """Have the old supervisor keep the ledger."""
        self._counted_by = other

    def hand_over(self, other: OtherSupervisor) -> None:
        """Hand the ledger over to the new supervisor."""
        other.tell("ledger", self._ledger.snapshot())
        self._counted_by = other

    def take(self, ledger: bytes) -> None:
        """Keep the ledger from now on."""
        self._ledger = Ledger.of_snapshot(ledger)
        self._counted_by = None

    def lose(self, other: OtherSupervisor) -> None:
        """Take note that the other supervisor has ended, and its processes do not share limits.

        If it kept the ledger, a new one begins: each process then tells all that it has.
        """
        if self._counted_by is other:
            self._counted_by = None
        self.leave(other)


class SupervisorLink:
    """The link of a process: see :class:`smtpd_fork.fleet.link.Link`."""

    shown = "the supervisor"

    def __init__(self, line: Line) -> None:
        self._line = line
        self._hints: asyncio.Queue[str] = asyncio.Queue()

    async def open(self) -> None:
        """Begin to talk, if the process has not begun."""
        await self._line.start()

    async def call(self, keys: list[str], message: bytes) -> object:
        """Send a message, and return its answer."""
        try:
            return await self._line.ask("sync", (keys, message))
        except (LineClosedError, RequestError) as error:
            raise FleetError(str(error) or "it has ended") from None

    async def ask(self, question: str, keys: list[str], message: bytes) -> object:
        """Ask beside the call under way."""
        try:
            return await self._line.ask("fleet", (question, keys, message), seconds=ASK_SECONDS)
        except (LineClosedError, RequestError, TimeoutError) as error:
            raise FleetError(str(error) or "no answer") from None

    def hinted(self, hint: str) -> None:
        """Take a hint from the supervisor."""
        self._hints.put_nowait(hint)

    async def hint(self) -> str:
        """Return the next hint."""
        return await self._hints.get()

    async def close(self) -> None:
        """Do nothing: the line is used for other things as well."""
