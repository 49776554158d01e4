"""OtherSupervisor: the supervisor of the other program in an upgrade, as this one sees it.

The new supervisor starts its processes one by one, and says of each that it serves; the old one
then has as many of its own rest. If that fails, they accept again, and the new processes end with
their last sessions. One of the two counts what all processes share (see ``shared_limits.py``): the
old one, until the new one has everything. The line between them is a socket pair, as the one to a
process (``line.py``), with these words:

=================  =======================================================================
``serves``         new to old: so many processes of so many serve; answered once old ones rest
``sync, fleet``    what a process tells and asks of the limits that all share
``left``           processes that have ended, by their names as nodes
``hint``           what the processes should know of the others
``ledger``         old to new: the counts; the new supervisor counts from now on
``full``           whether no process that accepts has a free slot
``all``            a question to all processes: status, sessions, kick
``cancel``         old to new: the upgrade is off
``stop, abort``    end, as this supervisor does
=================  =======================================================================
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from smtpd_fork.control_protocol import RequestError
from smtpd_fork.supervisor.line import Line, LineClosedError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Mapping

__all__ = ["PROTOCOL", "OtherSupervisor"]

PROTOCOL = 1
"""Of the line, and of all that processes answer to a supervisor. With an old program that has
another one nothing is shared, and the processes are not replaced one by one."""

ALL_SECONDS = 5.0
"""For the answers of all processes of the other supervisor; they are left out if it hangs."""


class Side(Protocol):
    """What this supervisor does for the other one."""

    def make_way(self, served: int, of: int) -> None:
        """Have old processes rest, as so many new ones serve, of so many."""

    def count(self, teller: OtherSupervisor, word: str, body: Any) -> Any:
        """Answer what a process of the other supervisor tells and asks of shared limits."""

    def forget_nodes(self, teller: OtherSupervisor, nodes: Collection[str]) -> None:
        """Take note that these nodes have ended."""

    def hint(self, hint: str, but: OtherSupervisor) -> None:
        """Tell all processes, and all other supervisors but one."""

    def cancelled(self) -> None:
        """Take note that the upgrade is off."""

    def take_ledger(self, ledger: bytes) -> None:
        """Count from now on."""

    def note_full(self, who: OtherSupervisor, *, full: bool) -> None:
        """Take note that it has no free slot, or has one."""

    async def all_answers(self, asks: OtherSupervisor, word: str, body: Any) -> dict[int, Any]:
        """Return the answers of all processes but those of the supervisor that asks."""

    end_as_well: Callable[[str], object]
    """Has this supervisor end as the other one does."""


class OtherSupervisor:
    """The other supervisor.

    :param sock: this end of the line; it is owned
    :param side: answers it
    :param stepped: called after each new process that serves
    :ivar served: how many of its processes serve; while it is the new one
    :ivar nodes: its processes, by their names as nodes
    """

    def __init__(
        self, sock: socket.socket, side: Side, stepped: Callable[[], object] = lambda: None
    ) -> None:
        self._side = side
        self.stepped = stepped
        self.served = 0
        self.nodes: set[str] = set()
        self._line = Line(sock)
        self._line.answer = self._answer
        self._words: Mapping[str, Callable[[Any], Any]] = {
            "serves": self._serves,
            "left": lambda body: side.forget_nodes(self, body),
            "hint": lambda body: side.hint(body, self),
            "ledger": side.take_ledger,
            "full": lambda body: side.note_full(self, full=body),
            "cancel": lambda _: side.cancelled(),
            "all": lambda body: side.all_answers(self, *body),
            "stop": lambda _: side.end_as_well("stop"),
            "abort": lambda _: side.end_as_well("abort"),
        }

    def _answer(self, word: str, body: Any) -> Any:
        if word in {"sync", "fleet"}:
            return self._side.count(self, word, body)
        return self._words[word](body)

    def _serves(self, body: Any) -> None:
        self.served, of = body
        self._side.make_way(self.served, of)
        self.stepped()

    async def start(self) -> None:
        """Begin to read and write, if it has not begun."""
        await self._line.start()

    async def ask(self, word: str, body: Any = None) -> Any:
        """Ask it; see :meth:`Line.ask`."""
        return await self._line.ask(word, body)

    def tell(self, word: str, body: Any = None) -> None:
        """Tell it; see :meth:`Line.tell`."""
        self._line.tell(word, body)

    async def answers(self, word: str, body: Any) -> dict[int, Any]:
        """Return the answers of its processes, by their pids; none if it does not answer."""
        found: dict[int, Any] = {}
        with suppress(LineClosedError, TimeoutError, RequestError):
            found = await self._line.ask("all", (word, body), seconds=ALL_SECONDS)
        return found

    async def ended(self, seconds: float | None = None) -> None:
        """Wait for its end, for so long at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._line.ended()

    def close(self) -> None:
        """Close the line."""
        self._line.close()
