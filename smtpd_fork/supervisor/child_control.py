"""ChildControl: the service of a child process that carries out its supervisor's requests."""

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
from smtpd_fork.supervisor.free_slots import FreeSlotElsewhere

if TYPE_CHECKING:
    from smtpd_fork.observe.reload_outcome import ReloadOutcome
    from smtpd_fork.server import Server
    from smtpd_fork.supervisor.channel import Channel

__all__ = ["ChildControl"]

log = logging.getLogger("smtpd_fork.daemon")

DRAINING = "draining"
"""The state of a process that accepts no clients any more."""


class ChildControl(Service):
    """Carries out the supervisor's requests, and drains the process if the supervisor ends.

    :param channel: to the supervisor
    :param hint: called with each hint about the limits that the processes share
    :param orders: functions that end the process: ``stop``, ``drain``, ``leave``, ``abort``
    :param reload: reads the settings again; its argument names the administrator, for the log
    :param collect: returns the values for the metrics and the status page; None without
        ``--metrics``
    """

    def __init__(
        self,
        channel: Channel,
        hint: Callable[[str], object],
        server: Server,
        orders: Mapping[str, Callable[[Any], object]],
        reload: Callable[[str], Awaitable[ReloadOutcome]],
        collect: Callable[[], Awaitable[Any]] | None,
    ) -> None:
        self._server = server
        self._orders = orders
        self._reload = reload
        self._collect = collect
        self._channel = channel
        channel.answer = self._answer
        self._hint = hint
        self._running: asyncio.Task[None] | None = None
        self._serving = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None
        self._administration = Administration(server, orders["drain"], merged=True)
        self._answers: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "control": self._control,
            "deny": self._deny,
            "figures": self._statistics,
            "limits": self._limits,
            "pause": self._pause,
            "ping": self._ping,
            "reload": self._reload_now,
            "rest": self._stop_accepting,
            "resume": self._resume,
            "serves": self._wait_until_serving,
            "undeny": self._undeny,
        }

    def __str__(self) -> str:
        return "the channel to the supervisor"

    async def start(self) -> None:
        """Start to answer requests."""
        await self._channel.start()
        self._free_slot_elsewhere = FreeSlotElsewhere(self._channel, self._server)
        self._running = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        await self._channel.ended()
        log.error("the supervisor has ended: draining")
        # Not "drain", which refuses waiting clients: another process may still accept them.
        self._order("leave", None)

    async def serving(self) -> None:
        """Answer pending requests of the supervisor that wait until this process serves.

        Until then the process may not have read the networks that were denied before.
        """
        self._serving.set()

    async def stopping(self) -> None:
        """Show the state ``stopping`` in the status."""
        self._administration.ending = self._administration.ending or "stopping"

    async def stop(self) -> None:
        """Cancel the tasks and close the channel."""
        for task in (self._running, self._draining):
            if task is not None:
                task.cancel()
        self._channel.close()

    async def _answer(self, kind: str, body: Any) -> Any:
        if kind == "hint":
            self._hint(body)
            return None
        if kind == "elsewhere":
            self._free_slot_elsewhere.set_free(free=body)
            return None
        if kind in self._orders:
            self._order(kind, body)
            return None
        return await self._answers[kind](body)

    def _order(self, name: str, body: Any) -> None:
        if self._draining is not None:
            self._draining.cancel()
        if name == "leave":
            self._administration.ending = self._administration.ending or DRAINING
        self._orders[name](body)

    async def _control(self, body: Any) -> dict[str, Any]:
        """Carry out a request of the control socket."""
        await self._serving.wait()
        who, request = body
        return await self._administration.answer(protocol.decode(request.encode()), who)

    async def _statistics(self, _: None) -> Any:
        if self._collect is None:  # the supervisor of an upgrade may have --metrics
            raise RequestError(Fault.REFUSED, "this process has no --metrics")
        return await self._collect()

    async def _wait_until_serving(self, _: None) -> None:
        await self._serving.wait()

    async def _ping(self, _: None) -> int:
        return self._server.gate.count

    async def _deny(self, body: Any) -> str:
        """Deny a network; return why the fleet did not get the denial, or ""."""
        await self._serving.wait()
        network, text, seconds, who = body
        self._server.gate.denials.add(network, text, seconds=seconds, by=who)
        fleet = self._server.fleet
        return "" if fleet is None else await fleet.denials.wait_until_sent()

    async def _undeny(self, body: Any) -> None:
        await self._serving.wait()
        self._server.gate.denials.remove(body)

    async def _pause(self, body: Any) -> None:
        if body:
            self._server.gate.pause()
        else:
            self._server.gate.resume()

    async def _stop_accepting(self, _: None) -> None:
        """Stop accepting clients, and end with the last session.

        Used in an upgrade. :meth:`_resume` reverts it, if the process has not ended by then.
        """
        self._server.rest()
        self._administration.ending = self._administration.ending or DRAINING
        if self._draining is None:  # the order comes again with each new process that serves
            self._draining = asyncio.ensure_future(self._end_with_last_session())

    async def _end_with_last_session(self) -> None:
        await self._server.leave()
        self._orders["leave"](None)

    async def _resume(self, _: None) -> None:
        """Accept clients again.

        The process may be ending already; then the supervisor starts another one.
        """
        if self._draining is not None:
            self._draining.cancel()
            self._draining = None
        if self._administration.ending == DRAINING:
            self._administration.ending = ""
            self._server.accept()

    async def _limits(self, body: Any) -> str:
        try:
            return await self._server.set_limits(**body)
        except SettingError as error:
            raise RequestError(Fault.REFUSED, printable(str(error), 1000)) from None

    async def _reload_now(self, body: Any) -> Any:
        if self._administration.ending:  # the process that replaces this one reads the settings
            return []
        outcome = await self._reload(body)
        if outcome.reason and not self._administration.ending:
            raise RequestError(Fault.REFUSED, outcome.reason, outcome.status)
        return list(outcome.changes)
