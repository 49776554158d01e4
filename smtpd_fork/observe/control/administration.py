"""Administration: what each request does, and what it is answered. No socket, no JSON."""

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
from smtpd_fork.net import describe, source_key
from smtpd_fork.observe.control import protocol
from smtpd_fork.observe.control.protocol import Fault, RequestError
from smtpd_fork.observe.control.run_time_limits import Limited, RunTimeLimits
from smtpd_fork.sanitizer import printable
from smtpd_fork.version import __version__

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from smtpd_fork.gate import Entry, Ticket
    from smtpd_fork.listeners import Listener

__all__ = ["Administration", "Front", "State"]

log = logging.getLogger("smtpd_fork.control")

TOP = 10
"""Sources with the most sessions that the status names."""

MAX_PLACES = 100
"""Listeners that the status names."""

UNTIL = "the next reload or restart"


class Front(Limited, Protocol):
    """The server, as far as it is administered."""

    @property
    def listeners(self) -> Sequence[Listener]:
        """Where it listens."""

    async def kick(self, chosen: Callable[[Ticket], bool]) -> int:
        """End the sessions that are chosen; return how many there were."""


class State:
    """How far the daemon's life has come.

    :ivar ending: ``draining`` or ``stopping``; empty while it serves
    """

    def __init__(self) -> None:
        self.ending = ""
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since when it runs."""
        return time.monotonic() - self._began


class Administration:
    """Answers requests.

    :param front: is administered
    :param state: how far its life has come
    :param drain: has the daemon end with its last session, or after so many seconds
    """

    def __init__(self, front: Front, state: State, drain: Callable[[float | None], None]) -> None:
        self._front = front
        self._state = state
        self._drain_daemon = drain
        self._limits = RunTimeLimits(front)
        self._answers: dict[type, Callable[[Any, str], Awaitable[dict[str, Any]]]] = {
            protocol.Status: self._status,
            protocol.Sessions: self._sessions,
            protocol.Kick: self._kick,
            protocol.Limits: self._tell_limits,
            protocol.Pause: self._pause,
            protocol.Resume: self._resume,
            protocol.Drain: self._drain,
            protocol.Explain: self._explain,
        }

    async def answer(self, request: protocol.Request, who: str) -> dict[str, Any]:
        """Carry out *request*.

        :param who: asks, for the log
        :raises RequestError: it is not carried out
        """
        return await self._answers[type(request)](request, who)

    # -- seeing --------------------------------------------------------------------------------

    async def _status(self, _: protocol.Status, __: str) -> dict[str, Any]:
        front, gate = self._front, self._front.gate
        stats = gate.stats()
        sources = gate.sources
        prefix = "refused_"
        refused = {k.removeprefix(prefix): n for k, n in stats.items() if k.startswith(prefix)}
        holders = [ticket.holder for ticket in gate.tickets()]
        phases = Counter("arriving" if h is None else h.phase for h in holders)
        top = heapq.nlargest(TOP, sources.items(), key=lambda each: each[1])
        return {
            "version": __version__,
            "pid": os.getpid(),
            "hostname": front.config.hostname,
            "state": self._state_word(),
            "seconds": round(self._state.seconds, 3),
            "sessions": gate.count,
            "limit": gate.limits.limit_connections,
            "phases": dict(sorted(phases.items())),
            "sources": len(sources),
            "top": [{"source": printable(source), "sessions": n} for source, n in top],
            "admitted": stats["admitted"],
            "refused": stats["refused"],
            "rules": refused,
            "listeners": [printable(str(each)) for each in front.listeners[:MAX_PLACES]],
            "limits_changed": sorted(self._limits.changes),
        }

    def _state_word(self) -> str:
        return self._state.ending or ("paused" if self._front.gate.paused else "serving")

    async def _sessions(self, request: protocol.Sessions, _: str) -> dict[str, Any]:
        entries = self._front.gate.ledger(limit=request.limit, after=request.after)
        last = entries[-1] if len(entries) == request.limit else None
        return {
            "sessions": [_told(entry) for entry in entries],
            "next": None if last is None else (last.since, last.id),
        }

    async def _explain(self, request: protocol.Explain, _: str) -> dict[str, Any]:
        explanation = self._front.gate.explain(request.id)
        if explanation is None:
            text = f"no refusal {printable(request.id)}, or it is not among the last thousand"
            raise RequestError(Fault.UNKNOWN, text)
        refusal = explanation.refusal
        reply = refusal.reply(self._front.config.hostname).decode("ascii").rstrip("\r\n")
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
            kicked = await self._front.kick(_of(request.source, self._front))
        else:
            what = printable(str(request.id))
            kicked = await self._front.kick(lambda ticket: ticket.id == request.id)
            if not kicked:
                raise RequestError(Fault.UNKNOWN, f"no session {what}")
        log.info("control: %s: kick %s: %d sessions", who, what, kicked)
        return {"kicked": kicked}

    async def _tell_limits(self, request: protocol.Limits, who: str) -> dict[str, Any]:
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
        self._front.gate.pause()
        return {"state": self._state_word()}

    async def _resume(self, _: protocol.Resume, who: str) -> dict[str, Any]:
        log.info("control: %s: resume", who)
        self._front.gate.resume()
        return {"state": self._state_word()}

    async def _drain(self, request: protocol.Drain, who: str) -> dict[str, Any]:
        if not self._state.ending:
            log.info("control: %s: drain", who)
            self._state.ending = "draining"
            self._drain_daemon(request.seconds)
        return {"state": self._state_word(), "sessions": self._front.gate.count}


def _told(entry: Entry) -> dict[str, Any]:
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


def _of(source: str, front: Front) -> Callable[[Ticket], bool]:
    """Return what chooses the tickets of a source, as it is counted, or of a network.

    :raises RequestError: it is neither
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
    key = Client(source, front.gate.limits.ipv6_prefix).source
    return lambda ticket: ticket.key == key
