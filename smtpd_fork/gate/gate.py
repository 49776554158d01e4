"""Gate: counts the sessions, in all and by client, and admits or refuses new ones.

The counts go up in :meth:`Gate.admit` and down in :meth:`Gate._give_back`, and nowhere else.
Everything is synchronous and does no I/O. A lock makes one gate safe to share between servers
in several threads (aiosmtpd's Controller runs in a thread of its own); it is never held while
other code runs.
"""

from __future__ import annotations

import logging
import time
from threading import Lock
from typing import TYPE_CHECKING

from smtpd_fork.config import LIMIT_CONNECTIONS, MAX_FROM_IP
from smtpd_fork.gate.ledger import Entry, entries
from smtpd_fork.gate.limits import Limits
from smtpd_fork.gate.refusal_log import RefusalLog
from smtpd_fork.gate.rule_book import RuleBook, judge
from smtpd_fork.gate.rules import Counts, Load
from smtpd_fork.gate.statistics import Explanation, Statistics
from smtpd_fork.gate.ticket import Ticket
from smtpd_fork.gate.verdict import Full, Refusal, Verdict
from smtpd_fork.gate.wrap import gated

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from smtpd_fork.gate.client import Client
    from smtpd_fork.peer_address import Peer

__all__ = ["Gate"]

log = logging.getLogger("smtpd_fork.gate")


class Gate:
    """Counts sessions and gives tickets to those that fit.

    :param limit_connections: sessions in all, at least 1
    :param max_from_ip: sessions from one source; 0 is no limit
    :param limits: all of the limits, in place of those two
    :param clock: returns seconds, never backwards
    :raises ValueError: a limit out of its range

    One gate may be shared by several servers, in several threads: they then share the limits.
    """

    def __init__(
        self,
        *,
        limit_connections: int = LIMIT_CONNECTIONS,
        max_from_ip: int = MAX_FROM_IP,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._lock = Lock()
        self._inside: set[Ticket] = set()
        self._statistics = Statistics()
        self.load = Load()
        """The event-loop lag; whoever measures it writes it here."""
        self._paused = False
        self._set_up(limits or Limits(limit_connections=limit_connections, max_from_ip=max_from_ip))
        self._waiters: list[tuple[Callable[[], None], bool]] = []
        self.refusals = RefusalLog(clock=clock)
        """The refusals' log: each source's first at once, the rest in summaries."""

    def _set_up(self, limits: Limits, before: RuleBook | None = None) -> None:
        """Apply *limits*; the sessions that exist are counted again by them."""
        self._limits = limits
        self._rules = RuleBook(limits, self.load, before)
        self.reserves = limits.reserve > 0
        self._open_to_all = limits.limit_connections - limits.reserve
        self._counts = Counts()
        for ticket in self._inside:
            ticket.client = self._rules.client(ticket.peer)
            self._counts.total += 1
            self._enter(ticket.client)

    # -- admission ---------------------------------------------------------------------------

    def admit(self, peer: Peer) -> Verdict:
        """Count *peer* in, or say why not.

        :returns: a :class:`Ticket`, to be released when the session ends; a :class:`Refusal` if
            a rule keeps this client out; :class:`Full` if there is no room for it
        """
        with self._lock:
            client = self._rules.client(peer)
            now = self._clock()
            counts = self._counts
            refusal = judge(client.rules.on_arrival, client, counts, now)
            if refusal is not None:
                return refusal
            limit = self._limits.limit_connections if client.exempt else self._open_to_all
            if self._paused or counts.total >= limit:
                return Full(counts.total + 1, limit, self._paused)
            counts.total += 1
            self._enter(client)
            for rule in client.rules.timed:
                rule.arrived(client, now)
            ticket = Ticket(client, peer, now, self._give_back)
            self._inside.add(ticket)
            self._statistics.admitted += 1
        return ticket

    def identify(self, ticket: Ticket, peer: Peer) -> Refusal | None:
        """Judge the client that a PROXY header names.

        The ticket was given to the connection of the proxy, as to a client without an address
        (``admit(None)``): in the count of all, and in no other.

        :returns: a :class:`Refusal` if a rule keeps *peer* out; the ticket is then still held, and
            as it was. None: it is *peer*'s from now on
        """
        with self._lock:
            client = self._rules.client(peer)
            now = self._clock()
            refusal = judge(client.rules.on_header, client, self._counts, now)
            if refusal is None and not ticket.released:
                ticket.client, ticket.peer = client, peer
                self._enter(client)
                for rule in client.rules.timed:
                    rule.arrived(client, now)
        return refusal

    def begin_handshake(self, ticket: Ticket) -> Refusal | None:
        """Count a TLS handshake as failed, until :meth:`end_handshake`; or say why it is not to be.

        :returns: a :class:`Refusal` if too many of this client, or its network, have failed lately
            or are under way
        """
        with self._lock:
            client, now = ticket.client, self._clock()
            for rule in client.rules.on_handshake:
                refusal = rule.judge(client, self._counts, now)
                if refusal is not None:
                    return refusal
            for rule in client.rules.timed_handshakes:
                rule.arrived(client, now)
        return None

    def end_handshake(self, ticket: Ticket) -> None:
        """Take note that a handshake that was begun has succeeded."""
        with self._lock:
            for rule in ticket.client.rules.timed_handshakes:
                rule.take_back(ticket.client)

    def _enter(self, client: Client) -> None:
        """Count a session in, with its source and its networks."""
        if client.source is not None:
            self._counts.enter(client.source)
        for rule in client.rules.told:
            rule.enter(client)

    def _give_back(self, ticket: Ticket) -> None:
        """Count a ticket out, once; called by the ticket."""
        with self._lock:
            if ticket.released:
                return
            ticket.released = True
            ticket.holder = None  # which may refer to its ticket
            self._inside.discard(ticket)
            client, counts = ticket.client, self._counts
            counts.total -= 1
            if client.source is not None:
                counts.leave(client.source)
            for rule in client.rules.told:
                rule.leave(client)
        if self._waiters:
            self._tell_waiters()

    # -- refusals, explained -----------------------------------------------------------------

    def refuse(self, verdict: Refusal | Full) -> Refusal:
        """Take note that a client was refused with *verdict*, and give that refusal its id.

        To be called when the reply is sent; not for a client that is deferred.
        """
        refusal = verdict if isinstance(verdict, Refusal) else verdict.refusal()
        with self._lock:
            self._statistics.note(refusal)
        return refusal

    def explain(self, name: str) -> Explanation | None:
        """Return what is known of a refusal by its id; None past the last thousand."""
        with self._lock:
            return self._statistics.explain(name)

    def ledger(
        self, *, limit: int | None = None, after: tuple[float, str] | None = None
    ) -> list[Entry]:
        """Return the connection slots in use, the oldest first.

        :param limit: at most so many; None is all
        :param after: ``(since, id)`` of the last entry of the page before this one. A client
            that stays from the first page to the last is on exactly one of them
        """
        return entries(self.tickets(), self._clock(), limit, after)

    def tickets(self) -> set[Ticket]:
        """Return the tickets that are held."""
        with self._lock:
            return set(self._inside)

    def stats(self) -> dict[str, int]:
        """Return how many were admitted, and how many each rule refused, since the beginning."""
        with self._lock:
            return self._statistics.counters()

    # -- waiting for room --------------------------------------------------------------------

    def when_room(self, callback: Callable[[], None], *, reserved: bool = False) -> None:
        """Call *callback* once, as soon as there is room for anybody (at once if there is).

        It is called in whatever thread gave the room, must not block, and may find the room
        taken again. A callback that is already waiting is not added twice.

        :param reserved: a slot that is reserved for exempt clients will do
        """
        with self._lock:
            if (callback, reserved) not in self._waiters:
                self._waiters.append((callback, reserved))
        self._tell_waiters()

    def forget(self, callback: Callable[[], None]) -> None:
        """Take back what :meth:`when_room` was told; no error if there is nothing to take."""
        with self._lock:
            self._waiters = [each for each in self._waiters if each[0] != callback]

    def _tell_waiters(self) -> None:
        # All of them, not one per place: the one that is told may have nobody in its backlog.
        with self._lock:
            total = self._counts.total
            if self._paused or total >= self._limits.limit_connections:
                return
            for_all = total < self._open_to_all
            waiters = [callback for callback, reserved in self._waiters if reserved or for_all]
            self._waiters = [] if for_all else [each for each in self._waiters if not each[1]]
        for waiter in waiters:
            try:
                waiter()
            except Exception:
                # A waiter whose loop is closed must not spoil the release of a ticket.
                log.exception("a callback that waited for room failed")

    # -- what is, and what may be ------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether nobody at all can come in now."""
        return self._paused or self._counts.total >= self._limits.limit_connections

    @property
    def crowded(self) -> bool:
        """Whether only slots that are reserved for exempt clients are left, or none."""
        return self._paused or self._counts.total >= self._open_to_all

    @property
    def stressed(self) -> bool:
        """Whether slots are short: three quarters of them, or more, are in use."""
        return 4 * self._counts.total >= 3 * self._open_to_all

    def is_exempt(self, peer: Peer) -> bool:
        """Whether the limits per client do not apply to *peer*, and slots are reserved for it."""
        if self._limits.exempt is None:
            return False
        with self._lock:
            return self._rules.client(peer).exempt

    def counted_as(self, peer: Peer) -> str | None:
        """Return what *peer* is counted by: its address, or its network of IPv6.

        None if it is not: rules about sources leave it alone, or it has no address.
        """
        with self._lock:
            client = self._rules.client(peer)
        return None if client.exempt else client.source

    @property
    def count(self) -> int:
        """Sessions now, in all."""
        return self._counts.total

    def count_from(self, peer: Peer) -> int:
        """Return how many sessions the source of *peer* has now."""
        with self._lock:
            source = self._rules.client(peer).source
            return self._counts.by_source.get(source, 0) if source is not None else 0

    @property
    def sources(self) -> dict[str, int]:
        """A copy of the sessions by source; sources without a session are not in it."""
        with self._lock:
            return dict(self._counts.by_source)

    @property
    def limits(self) -> Limits:
        """The limits in force. May be set at any time.

        Sessions that are already in stay in, so :attr:`count` can be above a limit that was
        lowered, until enough of them have ended.
        """
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        with self._lock:
            self._set_up(limits, self._rules)
        self._tell_waiters()

    @property
    def paused(self) -> bool:
        """Whether the gate was paused."""
        return self._paused

    def pause(self) -> None:
        """Admit no client until :meth:`resume`; sessions go on."""
        self._paused = True

    def resume(self) -> None:
        """Admit clients again after :meth:`pause`."""
        self._paused = False
        self._tell_waiters()

    # -- other people's protocols ------------------------------------------------------------

    def wrap(
        self, factory: Callable[[], asyncio.BaseProtocol], *, hostname: str | None = None
    ) -> Callable[[], asyncio.BaseProtocol]:
        """Return a protocol factory that asks this gate before it calls *factory*.

        For ``loop.create_server()`` and all that uses it, aiosmtpd's Controller for one. A
        connection that does not fit is answered 421 and closed; there is no deferring here, as
        the loop has accepted already.

        :param factory: returns a protocol for one connection
        :param hostname: names this host in the refusals; default: the system's name
        """
        return gated(factory, gate=self, hostname=hostname)

    def __repr__(self) -> str:
        limit = self._limits.limit_connections
        return f"<Gate {self.count}/{limit}{' paused' if self._paused else ''}>"
