"""Administration: carries out the requests of the control socket. No socket, no JSON."""

from __future__ import annotations

import heapq
import logging
import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

from smtpd_fork.config import SettingError
from smtpd_fork.gate.client import Client
from smtpd_fork.gate.networks import Network, NetworkTable, number_of
from smtpd_fork.observe.control import protocol
from smtpd_fork.observe.control.protocol import Fault, RequestError
from smtpd_fork.observe.control.run_time_limits import Limited, RunTimeLimits
from smtpd_fork.observe.refusal_history import refusals
from smtpd_fork.peer_address import describe, source_key
from smtpd_fork.sanitizer import printable
from smtpd_fork.version import __version__

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from smtpd_fork.gate import Entry, Ticket
    from smtpd_fork.listeners import Listener

__all__ = ["Administered", "Administration"]

log = logging.getLogger("smtpd_fork.control")

TOP = 10
"""Clients with the most sessions that the status names."""

MAX_LISTENERS = 100
"""Listeners that the status names."""

UNTIL = "the next reload or restart"


class Administered(Limited, Protocol):
    """What is administered: a :class:`smtpd_fork.Server`."""

    @property
    def listeners(self) -> Sequence[Listener]:
        """The bound sockets."""

    async def kick(self, chosen: Callable[[Ticket], bool]) -> int:
        """End the chosen sessions; return how many there were."""


class Administration:
    """Carries out requests.

    :param server: is administered
    :param drain: ends the daemon with its last session, or after so many seconds
    :ivar ending: ``draining`` or ``stopping``; empty while the daemon serves
    """

    def __init__(self, server: Administered, drain: Callable[[float | None], None]) -> None:
        self._server = server
        self._began = time.monotonic()
        self.ending = ""
        self._drain_daemon = drain
        self._limits = RunTimeLimits(server)
        self._answers: dict[type, Callable[[Any, str], Awaitable[dict[str, Any]]]] = {
            protocol.Status: self._status,
            protocol.Sessions: self._sessions,
            protocol.Kick: self._kick,
            protocol.Limits: self._change_limits,
            protocol.Pause: self._pause,
            protocol.Resume: self._resume,
            protocol.Drain: self._drain,
            protocol.Explain: self._explain,
        }

    async def answer(self, request: protocol.Request, who: str) -> dict[str, Any]:
        """Carry out *request*; return the reply.

        :param who: the client, for the log
        :raises RequestError: it cannot be carried out
        """
        return await self._answers[type(request)](request, who)

    # -- seeing --------------------------------------------------------------------------------

    async def _status(self, _: protocol.Status, __: str) -> dict[str, Any]:
        server, gate = self._server, self._server.gate
        stats = gate.stats()
        sources = gate.sources
        holders = [ticket.holder for ticket in gate.tickets()]
        phases = Counter("arriving" if h is None else h.phase for h in holders)
        top = heapq.nlargest(TOP, sources.items(), key=lambda each: each[1])
        return {
            "version": __version__,
            "pid": os.getpid(),
            "hostname": server.config.hostname,
            "state": self._state_word(),
            "seconds": round(time.monotonic() - self._began, 3),
            "sessions": gate.count,
            "limit": gate.limits.limit_connections,
            "phases": dict(sorted(phases.items())),
            "sources": len(sources),
            "top": [{"source": printable(source), "sessions": n} for source, n in top],
            "admitted": stats["admitted"],
            "refused": stats["refused"],
            "rules": refusals(stats),
            "listeners": [printable(str(each)) for each in server.listeners[:MAX_LISTENERS]],
            "limits_changed": sorted(self._limits.changes),
        }

    def _state_word(self) -> str:
        return self.ending or ("paused" if self._server.gate.paused else "serving")

    async def _sessions(self, request: protocol.Sessions, _: str) -> dict[str, Any]:
        entries = self._server.gate.ledger(limit=request.limit, after=request.after)
        last = entries[-1] if len(entries) == request.limit else None
        return {
            "sessions": [_session(entry) for entry in entries],
            "next": None if last is None else (last.since, last.id),
        }

    async def _explain(self, request: protocol.Explain, _: str) -> dict[str, Any]:
        explanation = self._server.gate.explain(request.id)
        if explanation is None:
            text = f"no refusal {printable(request.id)}, or it is not among the last thousand"
            raise RequestError(Fault.UNKNOWN, text)
        refusal = explanation.refusal
        reply = refusal.reply(self._server.config.hostname).decode("ascii").rstrip("\r\n")
        return {
            "id": refusal.id,
            "rule": refusal.rule,
            "key": printable(refusal.key),
            "count": refusal.count,
            "limit": refusal.limit,
            "reply": printable(reply, 1000),
            "cure": explanation.cure,
            "text": printable(str(explanation), 1000),
        }

    # -- changing ------------------------------------------------------------------------------

    async def _kick(self, request: protocol.Kick, who: str) -> dict[str, Any]:
        if (request.id is None) == (request.source is None):
            raise RequestError(Fault.REQUEST, "name an id or a source, and not both")
        if request.source is not None:
            what = f"all of {printable(request.source)}"
            kicked = await self._server.kick(_of(request.source, self._server))
        else:
            what = printable(str(request.id))
            kicked = await self._server.kick(lambda ticket: ticket.id == request.id)
            if not kicked:
                raise RequestError(Fault.UNKNOWN, f"no session {what}")
        log.info("control: %s: kick %s: %d sessions", who, what, kicked)
        return {"kicked": kicked}

    async def _change_limits(self, request: protocol.Limits, who: str) -> dict[str, Any]:
        warning = ""
        if request.set:
            try:
                warning = await self._limits.change(request.set)
            except SettingError as error:
                raise RequestError(Fault.REFUSED, printable(str(error), 1000)) from None
            words = [f"{name}={value}" for name, of in request.set.items() for value in of or [""]]
            log.info("control: %s: limits %s", who, printable(" ".join(words), 1000))
        if warning:
            log.warning("control: %s", warning)
        changed = sorted(self._limits.changes)
        return {
            "limits": self._limits.settings,
            "changed": changed,
            "until": UNTIL if changed else None,
            "warning": warning or None,
        }

    async def _pause(self, _: protocol.Pause, who: str) -> dict[str, Any]:
        log.info("control: %s: pause", who)
        self._server.gate.pause()
        return {"state": self._state_word()}

    async def _resume(self, _: protocol.Resume, who: str) -> dict[str, Any]:
        log.info("control: %s: resume", who)
        self._server.gate.resume()
        return {"state": self._state_word()}

    async def _drain(self, request: protocol.Drain, who: str) -> dict[str, Any]:
        if not self.ending:
            log.info("control: %s: drain", who)
            self.ending = "draining"
            self._drain_daemon(request.seconds)
        return {"state": self._state_word(), "sessions": self._server.gate.count}


def _session(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "peer": printable(describe(entry.peer)),
        "sender": None if entry.sender is None else printable(describe(entry.sender)),
        "source": None if entry.source is None else printable(entry.source),
        "exempt": entry.exempt,
        "seconds": round(entry.seconds, 3),
        "listener": printable(entry.listener),
        "phase": entry.phase,
        "tls": entry.tls,
        "messages": entry.messages,
        "helo": printable(entry.helo),
    }


def _of(source: str, server: Administered) -> Callable[[Ticket], bool]:
    """Return a function that chooses the tickets of an address or a network.

    :raises RequestError: *source* is neither
    """
    if "/" in source:
        try:
            network = NetworkTable([(Network.parse(source), True)])
        except ValueError as error:
            text = f"{printable(source)}: {error}"
            raise RequestError(Fault.REFUSED, text) from None
        return lambda ticket: bool(network.find(ticket.client.number))
    if number_of(source_key(source) or "") is None:
        text = f"{printable(source)}: neither an address nor a network"
        raise RequestError(Fault.REFUSED, text)
    key = Client(source, server.gate.limits.ipv6_prefix).source
    return lambda ticket: ticket.key == key
