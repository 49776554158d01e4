"""ChildLine: the service of a process that answers its supervisor."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import smtpd_fork.control_protocol as protocol
from smtpd_fork.config import SettingError
from smtpd_fork.control_protocol import Fault, RequestError
from smtpd_fork.observe.control.administration import Administration
from smtpd_fork.observe.service import Service
from smtpd_fork.sanitizer import printable
from smtpd_fork.supervisor.elsewhere import Elsewhere

if TYPE_CHECKING:
    from smtpd_fork.observe.reload_outcome import ReloadOutcome
    from smtpd_fork.server import Server
    from smtpd_fork.supervisor.line import Line

__all__ = ["ChildLine"]

log = logging.getLogger("smtpd_fork.daemon")

RESTING = "draining"
"""The state of a process that accepts no more."""


class ChildLine(Service):
    """Answers the supervisor, and ends the process when the supervisor is gone.

    :param line: this end of the line
    :param hint: is called with what the other processes say of the limits that they share
    :param orders: what ends the process, by the supervisor's word: ``stop``, ``drain``, ``leave``,
        ``abort``
    :param reload: reads the settings again, for the administrator whom it is given
    :param figures: returns what is merged for metrics and the status page; None without them
    """

    def __init__(
        self,
        line: Line,
        hint: Callable[[str], object],
        server: Server,
        orders: Mapping[str, Callable[[Any], object]],
        reload: Callable[[str], Awaitable[ReloadOutcome]],
        figures: Callable[[], Awaitable[Any]] | None,
    ) -> None:
        self._server = server
        self._orders = orders
        self._reload = reload
        self._get_figures = figures
        self._line = line
        line.answer = self._answer
        self._hint = hint
        self._running: asyncio.Task[None] | None = None
        self._serves = asyncio.Event()
        self._resting: asyncio.Task[None] | None = None
        self._administration = Administration(server, orders["drain"], merged=True)
        self._answers: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "control": self._control,
            "deny": self._deny,
            "figures": self._figures,
            "limits": self._limits,
            "pause": self._pause,
            "ping": self._ping,
            "reload": self._reload_now,
            "rest": self._rest,
            "resume": self._resume,
            "serves": self._until_serving,
            "undeny": self._undeny,
        }

    def __str__(self) -> str:
        return "the line to the supervisor"

    async def start(self) -> None:
        """Begin to answer."""
        await self._line.start()
        self._elsewhere = Elsewhere(self._line, self._server)
        self._running = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        await self._line.ended()
        log.error("the supervisor has ended: draining")
        self._order("leave", None)  # other processes may accept: clients that wait go on here

    async def serving(self) -> None:
        """Tell the supervisor, if it has asked."""
        self._serves.set()

    async def stopping(self) -> None:
        """Show the stop in the status."""
        self._administration.ending = self._administration.ending or "stopping"

    async def stop(self) -> None:
        """Answer no more."""
        for task in (self._running, self._resting):
            if task is not None:
                task.cancel()
        self._line.close()

    async def _answer(self, word: str, body: Any) -> Any:
        if word == "hint":
            self._hint(body)
            return None
        if word == "elsewhere":
            self._elsewhere.changed(free=body)
            return None
        if word in self._orders:
            self._order(word, body)
            return None
        return await self._answers[word](body)

    def _order(self, word: str, body: Any) -> None:
        if self._resting is not None:
            self._resting.cancel()
        if word == "leave":
            self._administration.ending = self._administration.ending or RESTING
        self._orders[word](body)

    async def _control(self, body: Any) -> dict[str, Any]:
        """Answer a request of the control socket."""
        who, request = body
        return await self._administration.answer(protocol.decode(request.encode()), who)

    async def _figures(self, _: None) -> Any:
        if self._get_figures is None:  # of another program in an upgrade, that has --metrics
            raise RequestError(Fault.REFUSED, "this process has no --metrics")
        return await self._get_figures()

    async def _until_serving(self, _: None) -> None:
        await self._serves.wait()

    async def _ping(self, _: None) -> int:
        return self._server.gate.count

    async def _deny(self, body: Any) -> str:
        """Deny a network; return why the fleet does not know it, or ""."""
        network, text, seconds, who = body
        self._server.gate.denials.add(network, text, seconds=seconds, by=who)
        fleet = self._server.fleet
        return "" if fleet is None else await fleet.denials.told()

    async def _undeny(self, body: Any) -> None:
        self._server.gate.denials.remove(body)

    async def _pause(self, body: Any) -> None:
        if body:
            self._server.gate.pause()
        else:
            self._server.gate.resume()

    async def _rest(self, _: None) -> None:
        """Accept no more, and end with the last session; until :meth:`_resume`, in an upgrade."""
        self._server.rest()
        self._administration.ending = self._administration.ending or RESTING
        self._resting = asyncio.ensure_future(self._end_with_last_session())

    async def _end_with_last_session(self) -> None:
        await self._server.leave()
        self._orders["leave"](None)

    async def _resume(self, _: None) -> None:
        """Accept again; the end may have come first, and the supervisor sees that."""
        if self._resting is not None:
            self._resting.cancel()
        if self._administration.ending == RESTING:
            self._administration.ending = ""
            self._server.accept()

    async def _limits(self, body: Any) -> str:
        try:
            return await self._server.set_limits(**body)
        except SettingError as error:
            raise RequestError(Fault.REFUSED, printable(str(error), 1000)) from None

    async def _reload_now(self, body: Any) -> Any:
        outcome = await self._reload(body)
        if outcome.reason:
            raise RequestError(Fault.REFUSED, outcome.reason, outcome.status)
        return list(outcome.changes)
