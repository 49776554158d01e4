"""Administration: carries out the requests of the control socket, without sockets and JSON."""

from __future__ import annotations

import heapq
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import smtpd_fork.control_protocol as protocol
from smtpd_fork.config import BOOLEANS, LISTS, SettingError
from smtpd_fork.control_protocol import Fault, RequestError
from smtpd_fork.fleet.status import fleet_status
from smtpd_fork.gate import GATE_SETTINGS
from smtpd_fork.gate.client import Client
from smtpd_fork.gate.networks import Network, NetworkTable, number_of
from smtpd_fork.observe.control.fleet_view import fleet_view, sessions_by_node
from smtpd_fork.observe.refusal_history import refusals
from smtpd_fork.observe.sink_state import filter_states, sink_states
from smtpd_fork.peer_address import describe, host_of
from smtpd_fork.sanitizer import printable
from smtpd_fork.units import counted, parse_boolean
from smtpd_fork.version import __version__

if TYPE_CHECKING:
    from smtpd_fork.gate import Denial, Entry, Ticket
    from smtpd_fork.observe.service import Observed

__all__ = ["Administration"]

log = logging.getLogger("smtpd_fork.control")

TOP_CLIENTS = 10
"""Maximum number of clients in the status, those with the most sessions."""

MAX_LISTENERS = 100
"""Maximum number of listeners in the status."""

LIMITS_UNTIL = "the next reload or restart"


class Administration:
    """Carries out requests for one server.

    :param drain: ends the daemon with its last session, or after the given number of seconds
    :param merged: whether replies are merged with those of other processes: then the status has
        all clients, and a session has its start by the clock that the processes share
    :ivar ending: ``draining`` or ``stopping``; empty while the daemon serves
    """

    def __init__(
        self, server: Observed, drain: Callable[[float | None], object], *, merged: bool = False
    ) -> None:
        self._server = server
        self._merged = merged
        self._started_at = time.monotonic()
        self.ending = ""
        self._drain_daemon = drain
        self._methods: dict[type, Callable[[Any, str], Awaitable[dict[str, Any]]]] = {
            protocol.Status: self._status,
            protocol.Sessions: self._sessions,
            protocol.Kick: self._kick,
            protocol.Limits: self._change_limits,
            protocol.Deny: self._deny,
            protocol.Undeny: self._undeny,
            protocol.Denials: self._list_denials,
            protocol.Fleet: self._fleet,
            protocol.Pause: self._pause,
            protocol.Resume: self._resume,
            protocol.Drain: self._drain,
            protocol.Explain: self._explain,
        }

    async def answer(self, request: protocol.Request, who: str) -> dict[str, Any]:
        """Carry out *request*, and return the reply.

        :param who: the administrator, for the log
        :raises RequestError: the request cannot be carried out
        """
        return await self._methods[type(request)](request, who)

    # -- requests that change nothing ----------------------------------------------------------

    async def _status(self, _: protocol.Status, __: str) -> dict[str, Any]:
        server, gate = self._server, self._server.gate
        stats = gate.stats()
        clients = gate.clients
        holders = [ticket.holder for ticket in gate.tickets()]
        phases = Counter("arriving" if h is None else h.phase for h in holders)
        most = len(clients) if self._merged else TOP_CLIENTS
        top = heapq.nlargest(most, clients.items(), key=lambda each: each[1])
        return {
            "version": __version__,
            "pid": os.getpid(),
            "hostname": server.config.hostname,
            "state": self._state(),
            "seconds": self._uptime,
            "sessions": gate.count,
            "limit": gate.limits.limit_connections,
            "phases": dict(sorted(phases.items())),
            "clients": len(clients),
            "top": [{"client": printable(client), "sessions": n} for client, n in top],
            "admitted": stats["admitted"],
            "refused": stats["refused"],
            "rules": refusals(stats),
            "messages": {name: n for name, n in server.tally.outcomes().items() if n},
            "rejections": dict(server.tally.rejections.counts.most_common()),
            "sinks": sink_states(server),
            "filters": filter_states(server),
            "listeners": [printable(str(each)) for each in server.listeners[:MAX_LISTENERS]],
            "limits_changed": sorted(server.changed_limits),
            "denied": len(gate.denials),
            "fleet": fleet_status(server.fleet),
        }

    @property
    def _uptime(self) -> float:
        """Seconds since the daemon began to serve."""
        return round(time.monotonic() - self._started_at, 3)

    def _state(self) -> str:
        return self.ending or ("paused" if self._server.gate.paused else "serving")

    async def _sessions(self, request: protocol.Sessions, _: str) -> dict[str, Any]:
        entries = self._server.gate.ledger(limit=request.limit, after=request.after)
        last = entries[-1] if len(entries) == request.limit else None
        return {
            "sessions": [
                {**_session(entry), "since": entry.since} if self._merged else _session(entry)
                for entry in entries
            ],
            "next": None if last is None else (last.since, last.id),
        }

    async def _fleet(self, request: protocol.Fleet, _: str) -> dict[str, Any]:
        return await fleet_view(self._server, request.client)

    async def _explain(self, request: protocol.Explain, _: str) -> dict[str, Any]:
        explanation = self._server.gate.explain(request.id)
        rejections = self._server.tally.rejections.of_session(request.id)
        if explanation is None and rejections:
            return {
                "id": printable(request.id),
                "rejections": [each.facts() for each in rejections],
                "text": printable(str(rejections[-1]), 1000),
            }
        if explanation is None:
            text = f"no refusal {printable(request.id)}, or it is not among the last thousand"
            raise RequestError(Fault.UNKNOWN, text)
        refusal = explanation.refusal
        reply = refusal.reply(self._server.config.hostname).decode("ascii").rstrip("\r\n")
        return {
            "id": refusal.id,
            "rule": refusal.rule,
            "client": printable(refusal.client),
            "key": printable(refusal.key),
            "count": refusal.count,
            "limit": refusal.limit,
            "reply": printable(reply, 1000),
            "nodes": await sessions_by_node(self._server.fleet, self._server.gate, refusal),
            "origin": printable(refusal.origin, 1000),
            "cure": explanation.cure,
            "text": printable(str(explanation), 1000),
        }

    # -- requests that change the daemon -------------------------------------------------------

    async def _kick(self, request: protocol.Kick, who: str) -> dict[str, Any]:
        if (request.id is None) == (request.client is None):
            raise RequestError(Fault.REQUEST, "name either an id or a client")
        if request.client is not None:
            what = f"all of {printable(request.client)}"
            kicked = await self._server.kick(_tickets_of(request.client, self._server))
        else:
            what = printable(str(request.id))
            kicked = await self._server.kick(lambda ticket: ticket.id == request.id)
            if not kicked:
                raise RequestError(Fault.UNKNOWN, f"no session {what}")
        log.info("control: %s: kick %s: %s", who, what, counted(kicked, "session"))
        return {"kicked": kicked}

    async def _change_limits(self, request: protocol.Limits, who: str) -> dict[str, Any]:
        server, warning = self._server, ""
        if request.set:
            try:
                values: Any = {name: _value(name, of) for name, of in request.set.items()}
                warning = await server.set_limits(**values)
            except SettingError as error:
                raise RequestError(Fault.REFUSED, printable(str(error), 1000)) from None
            words = [f"{name}={value}" for name, of in request.set.items() for value in of or [""]]
            log.info("control: %s: limits %s", who, printable(" ".join(words), 1000))
        if warning:
            log.warning("control: %s", warning)
        changed = sorted(server.changed_limits)
        in_force = {name: getattr(server.config, name) for name in sorted(GATE_SETTINGS)}
        return {
            "limits": {**in_force, **server.changed_limits},
            "changed": changed,
            "until": LIMITS_UNTIL if changed else None,
            "warning": warning or None,
        }

    async def _deny(self, request: protocol.Deny, who: str) -> dict[str, Any]:
        denials, seconds = self._server.gate.denials, request.seconds
        try:
            denial = denials.add(request.network, request.text, seconds=seconds, by=who)
        except SettingError as error:
            raise RequestError(Fault.REFUSED, printable(str(error), 1000)) from None
        time = "" if seconds is None else f" for {seconds:g} s"
        text = denial.text and f": {denial.text}"
        log.info("control: %s: deny %s%s%s", who, denial.written, time, text)
        return {**_denial(denial, seconds), "untold": await self._unshared_reason()}

    async def _undeny(self, request: protocol.Undeny, who: str) -> dict[str, Any]:
        shown = printable(request.network)
        try:
            removed = self._server.gate.denials.remove(request.network)
        except SettingError as error:
            raise RequestError(Fault.REFUSED, printable(str(error), 1000)) from None
        if not removed:
            text = f"{shown} was not denied at run time; remove entries of --deny from its files"
            raise RequestError(Fault.UNKNOWN, text)
        log.info("control: %s: undeny %s", who, shown)
        return {"network": shown, "untold": await self._unshared_reason()}

    async def _unshared_reason(self) -> str | None:
        """Return why a change could not be sent to the fleet yet; None if it was sent.

        It is sent later in any case.
        """
        fleet = self._server.fleet
        reason = "" if fleet is None else await fleet.denials.wait_until_sent()
        return printable(fleet.episodes.reason or reason, 1000) if fleet and reason else None

    async def _list_denials(self, request: protocol.Denials, _: str) -> dict[str, Any]:
        page = self._server.gate.denials.page(limit=request.limit, after=request.after)
        return {
            "denials": [_denial(denial, left) for denial, left in page],
            "next": page[-1][0].number if len(page) == request.limit else None,
        }

    async def _pause(self, _: protocol.Pause, who: str) -> dict[str, Any]:
        log.info("control: %s: pause", who)
        self._server.gate.pause()
        return {"state": self._state()}

    async def _resume(self, _: protocol.Resume, who: str) -> dict[str, Any]:
        log.info("control: %s: resume", who)
        self._server.gate.resume()
        return {"state": self._state()}

    async def _drain(self, request: protocol.Drain, who: str) -> dict[str, Any]:
        if not self.ending:
            log.info("control: %s: drain", who)
            self.ending = "draining"
            self._drain_daemon(request.seconds)
        return {"state": self._state(), "sessions": self._server.gate.count}


def _value(name: str, words: Sequence[str]) -> bool | str | Sequence[str]:
    """Return the value of a limit in the type that its option has."""
    if name not in GATE_SETTINGS or name == "deny":
        return " ".join(words)  # set_limits() shows it in its error
    if name in LISTS:
        return words
    if len(words) != 1:
        raise SettingError(name, " ".join(words), "one value is expected")
    return words[0] if name not in BOOLEANS else _boolean(name, words[0])


def _boolean(name: str, word: str) -> bool:
    try:
        return parse_boolean(word)
    except ValueError as error:
        raise SettingError(name, word, str(error)) from None


def _denial(denial: Denial, left: float | None) -> dict[str, Any]:
    endless = left is None or left == math.inf
    return {
        "network": denial.written,
        "text": denial.text,
        "by": printable(denial.by),
        "node": printable(denial.node),
        "since": round(denial.since, 3),
        "seconds": None if endless else round(left or 0.0, 3),
    }


def _session(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "peer": printable(describe(entry.peer)),
        "sender": None if entry.sender is None else printable(describe(entry.sender)),
        "key": None if entry.key is None else printable(entry.key),
        "exempt": entry.exempt,
        "seconds": round(entry.seconds, 3),
        "listener": printable(entry.listener),
        "phase": entry.phase,
        "tls": entry.tls,
        "messages": entry.messages,
        "helo": printable(entry.helo),
    }


def _tickets_of(client: str, server: Observed) -> Callable[[Ticket], bool]:
    """Return a function that returns whether a ticket is that of *client*.

    :param client: an address or a network
    :raises RequestError: *client* is neither
    """
    if "/" in client:
        try:
            network = NetworkTable([(Network.parse(client), True)])
        except ValueError as error:
            text = f"{printable(client)}: {error}"
            raise RequestError(Fault.REFUSED, text) from None
        return lambda ticket: bool(network.find(ticket.client.number))
    if number_of(host_of(client) or "") is None:
        text = f"{printable(client)}: neither an address nor a network"
        raise RequestError(Fault.REFUSED, text)
    key = Client(client, server.gate.limits.ipv6_prefix).key
    return lambda ticket: ticket.key == key
