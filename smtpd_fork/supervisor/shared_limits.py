"""SharedLimits: limits of clients, networks and rates over all processes of a supervisor.

A process is a node of a fleet (:mod:`smtpd_fork.fleet`), and the supervisor keeps the ledger. What
a process holds is free when it ends.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import msgspec

from smtpd_fork.control_protocol import RequestError
from smtpd_fork.fleet.ledger import Ledger
from smtpd_fork.fleet.sync import FleetError, Sync
from smtpd_fork.supervisor.line import LineClosedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_fork.supervisor.line import Line
    from smtpd_fork.supervisor.serving_process import ServingProcess

__all__ = ["LEASE_SECONDS", "SharedLimits", "SupervisorLink"]

LEASE_SECONDS = 60.0
"""For which the word of a process counts that is silent; the supervisor sees its end at once."""

ASK_SECONDS = 2.0
"""For the answer to a question beside the call under way."""

_decoder = msgspec.msgpack.Decoder(Sync)
_encoder = msgspec.msgpack.Encoder()


class SharedLimits:
    """The supervisor's end."""

    def __init__(self) -> None:
        self._ledger = Ledger()

    def answer(self, process: ServingProcess, word: str, body: Any) -> tuple[bytes, Sequence[str]]:
        """Return the answer to the message of a process, and hints for the others.

        :param word: ``sync``, or ``fleet`` for another question
        """
        answer: object
        now = time.monotonic_ns() // 1000
        if word == "fleet":
            question, keys, message = body
            answer = self._ledger.ask(question, keys, message, now)
        else:
            keys, message = body
            sync = _decoder.decode(message)
            process.node = sync.node
            answer = self._ledger.sync(keys, sync, now)
        return _encoder.encode(answer), self._ledger.hints

    def leave(self, process: ServingProcess) -> None:
        """Forget a process that has ended."""
        self._ledger.remove(process.node)


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
