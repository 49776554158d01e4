"""Gate: counts the sessions, in all and by client, and admits or refuses new ones.

Only :meth:`Gate.admit` increases the number of sessions, and only :meth:`Gate._release_slot`
decreases it. The gate is synchronous and does no I/O. Its lock allows servers in several threads to
share it (aiosmtpd's Controller has its own thread); no callback runs while the lock is held.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Unpack

from smtpd_fork.gate.denials import Denials
from smtpd_fork.gate.ledger import Entry, entries
from smtpd_fork.gate.limits import Limits
from smtpd_fork.gate.refusal_log import RefusalLog
from smtpd_fork.gate.rule_book import RuleBook
from smtpd_fork.gate.rules import Counts, Load
from smtpd_fork.gate.slots import Slots
from smtpd_fork.gate.statistics import Explanation, Statistics
from smtpd_fork.gate.ticket import Ticket
from smtpd_fork.gate.verdict import Full, Refusal, Verdict
from smtpd_fork.gate.waiters import Waiters
from smtpd_fork.gate.wrap import wrapped

if TYPE_CHECKING:
    import asyncio

    from smtpd_fork.gate.fleet_share import FleetShare
    from smtpd_fork.peer_address import Peer
    from smtpd_fork.settings import GateSettings

__all__ = ["Gate"]


class Gate:
    """Counts sessions, and admits clients within the limits.

    :param limits: the limits, instead of *settings*
    :param clock: a monotonic clock, which returns seconds
    :param settings: the limits by name, see :class:`Limits`: ``Gate(max_from_ip=3, rate="30/m")``
    :ivar denials: the networks that are denied at run time
    :ivar slots: the connection slots
    :ivar load: the event-loop lag; the code that measures it sets it
    :ivar lock: guards the counts, and the gate's share in a fleet
    :raises SettingError: a setting is unknown, cannot be read, or is out of its range
    :raises TypeError: *limits* has another type, or there are settings as well

    Several servers, in several threads, may share one gate and its limits.
    """

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        **settings: Unpack[GateSettings],
    ) -> None:
        if limits is not None and settings:
            raise TypeError(f"either limits or settings, not both: {', '.join(settings)}")
        self._clock = clock
        self.lock = Lock()
        self.slots = Slots(clock)
        self._tickets = self.slots.tickets
        self._statistics = Statistics()
        self.load = Load()
        self.denials = Denials(self.lock, clock)
        self._set_up(Limits(**settings) if limits is None else limits)
        self._waiters = Waiters(self.lock)
        self.refusals = RefusalLog(clock=clock)
        """Decides which refusals are logged: the first of each client; summaries of the others."""

    def _set_up(self, limits: Limits, before: RuleBook | None = None) -> None:
        """Apply *limits*, and count the open sessions again by them."""
        if not isinstance(limits, Limits):
            raise TypeError(f"limits must be a Limits, not {type(limits).__name__}")
        self._limits = limits
        self.slots.change(limits)
        if (share := self.slots.share) is not None:
            share.recount()
        self._rules = RuleBook(limits, self.load, self.denials, share, before)
        self._counts = Counts(self._tickets)
        for ticket in self._tickets:
            ticket.client = self._rules.client(ticket.peer, proxy=ticket.client.proxy)
            self._counts.enter(ticket.client)

    # -- admission ---------------------------------------------------------------------------

    def admit(self, peer: Peer, *, proxy: bool = False) -> Verdict:
        """Admit *peer* and count it, or refuse it.

        :param proxy: whether *peer* is a proxy that will name its clients (:meth:`identify`); no
            limits per client apply to it
        :returns: a :class:`Ticket`, to be released when the session ends; a :class:`Refusal` if
            a rule refuses this client; :class:`Full` if no connection slot is free
        """
        with self.lock:
            client, now = self._rules.client(peer, proxy=proxy), self._clock()
            for rule in client.rules.on_arrival:
                if (refusal := rule.judge(client, self._counts, now)) is not None:
                    return refusal
            if (full := self.slots.full_for(client)) is not None:
                return full
            self._counts.enter(client)
            for rule in client.rules.timed:
                rule.arrived(client, now)
            ticket = Ticket(client, peer, now, self._release_slot)
            self._tickets.add(ticket)
            self._statistics.admitted += 1
        return ticket

    def identify(self, ticket: Ticket, peer: Peer, *, proxy: bool = False) -> Refusal | None:
        """Apply the rules to the client that a PROXY header or XCLIENT names.

        The ticket belongs to the connection of the proxy. Before a PROXY header, the connection is
        admitted without an address (``admit(None)``) and counted in the total only. XCLIENT may
        name several clients, one after the other: each replaces the previous one.

        :param proxy: as in :meth:`admit`: *peer* is a proxy behind this one, and will name its
            clients
        :returns: a :class:`Refusal` if a rule refuses *peer*; the ticket is then unchanged, and
            must still be released. None: the ticket is counted for *peer* from now on
        """
        with self.lock:
            if ticket.released:
                return None
            client, before = self._rules.client(peer, proxy=proxy), ticket.client
            now = self._clock()
            self._counts.leave(before)
            for rule in client.rules.on_header:
                if (refusal := rule.judge(client, self._counts, now)) is not None:
                    self._counts.enter(before)
                    return refusal
            ticket.client, ticket.peer = client, peer
            self._counts.enter(client)
            for rule in before.rules.timed if before.proxy else ():
                rule.take_back(before)
            for rule in client.rules.timed:
                rule.arrived(client, now)
        return None

    def begin_handshake(self, ticket: Ticket) -> Refusal | None:
        """Count a TLS handshake as failed until :meth:`end_handshake`, or refuse it.

        :returns: a :class:`Refusal` if too many handshakes of this client, or of its network, have
            failed recently or are in progress
        """
        with self.lock:
            client, now = ticket.client, self._clock()
            for rule in client.rules.on_handshake:
                if (refusal := rule.judge(client, self._counts, now)) is not None:
                    return refusal
            for rule in client.rules.timed_handshakes:
                rule.arrived(client, now)
        return None

    def end_handshake(self, ticket: Ticket) -> None:
        """Uncount a handshake that has succeeded."""
        with self.lock:
            for rule in ticket.client.rules.timed_handshakes:
                rule.take_back(ticket.client)

    def take_back(self, ticket: Ticket) -> None:
        """Uncount a new session in the rates, as its client is refused after it was admitted."""
        with self.lock:
            for rule in ticket.client.rules.timed:
                rule.take_back(ticket.client)

    def _release_slot(self, ticket: Ticket) -> None:
        """Release the slot of a ticket, once; the ticket calls it."""
        with self.lock:
            if ticket.released:
                return
            ticket.released = True
            ticket.holder = None  # it may refer to the ticket: break the cycle
            self._tickets.remove(ticket)
            self._counts.leave(ticket.client)
        if self._waiters:
            self.tell_waiters()
        if (share := self.slots.share) is not None:
            share.slot_released()  # after the clients that wait here had their chance

    # -- refusals and reports ----------------------------------------------------------------

    def refuse(self, verdict: Refusal | Full, *, client: str = "", session: str = "") -> Refusal:
        """Count a refusal, and set its id; to be called when the reply is sent."""
        refusal = verdict if isinstance(verdict, Refusal) else verdict.refusal()
        refusal.client, refusal.session = client, session
        share = self.slots.share
        with self.lock:
            if share is not None and isinstance(verdict, Full):
                share.client_refused(self._clock())
            self._statistics.note(refusal)
        return refusal

    def explain(self, name: str) -> Explanation | None:
        """Return one of the last thousand refusals by its id, with advice; None: unknown id."""
        with self.lock:
            return self._statistics.explain(name)

    def ledger(
        self, *, limit: int | None = None, after: tuple[float, str] | None = None
    ) -> list[Entry]:
        """Return the connection slots in use, the oldest first.

        :param limit: maximum number of entries; None: all
        :param after: ``(since, id)`` of the last entry on the previous page. A session that exists
            while all pages are read is on exactly one of them
        """
        return entries(self.tickets(), self._clock(), limit, after)

    def tickets(self) -> set[Ticket]:
        """Return the tickets in use."""
        with self.lock:
            return set(self._tickets)

    def stats(self) -> dict[str, int]:
        """Return the numbers of admitted clients, and of refused ones by rule, since the start."""
        with self.lock:
            return self._statistics.counters()

    # -- waiting for a slot ------------------------------------------------------------------

    def when_room(self, callback: Callable[[], None], *, reserved: bool = False) -> None:
        """Call *callback* once, as soon as a connection slot is free (at once if one is).

        It is called in the thread that has released the slot, must not block, and may find that the
        slot is in use again. A callback that waits already is not added twice.

        :param reserved: whether a slot that is reserved for exempt clients suffices
        """
        self._waiters.add(callback, reserved)
        self.tell_waiters()
        if self._waiters:
            self.slots.full()  # requests a slot of the fleet, if there is one

    def forget(self, callback: Callable[[], None]) -> None:
        """Cancel :meth:`when_room`; no error if *callback* does not wait."""
        self._waiters.remove(callback)

    @property
    def has_waiters(self) -> bool:
        """Whether a client waits for a slot."""
        return bool(self._waiters)

    def tell_waiters(self) -> None:
        """Call the waiting callbacks if a slot is free."""
        if not self.full:
            self._waiters.call(for_all=not self.slots.crowded)

    # -- counts and limits -------------------------------------------------------------------

    @property
    def free(self) -> int:
        """The number of free slots, including reserved ones; negative after a limit was lowered."""
        return self.slots.free

    @property
    def full(self) -> bool:
        """Whether no client can be admitted now."""
        return self.free <= 0

    def is_exempt(self, peer: Peer) -> bool:
        """Return whether *peer* is exempt from limits per client, and may use reserved slots."""
        if self._limits.exempt is None:
            return False
        with self.lock:
            return self._rules.client(peer).exempt

    def counted_as(self, peer: Peer) -> str | None:
        """Return the address or network by which *peer* is counted.

        None if it is exempt, or a client of a unix socket.
        """
        with self.lock:
            client = self._rules.client(peer)
        return None if client.exempt else client.key

    @property
    def count(self) -> int:
        """The number of sessions."""
        return len(self._tickets)

    def count_from(self, peer: Peer) -> int:
        """Return the number of sessions of the client *peer*."""
        with self.lock:
            key = self._rules.client(peer).key
            return self._counts.by_client.get(key, 0) if key is not None else 0

    @property
    def clients(self) -> dict[str, int]:
        """The number of sessions by client (IPv4 address or IPv6 network); a copy."""
        with self.lock:
            return dict(self._counts.by_client)

    @property
    def limits(self) -> Limits:
        """The limits in force. They may be set at any time.

        Open sessions continue, so :attr:`count` may exceed a limit that was lowered.
        """
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        with self.lock:
            self._set_up(limits, self._rules)
        self.tell_waiters()

    @property
    def paused(self) -> bool:
        """Whether the gate is paused."""
        return self.slots.paused

    def join(self, share: FleetShare | None) -> None:
        """Join a fleet, whose nodes share the limits; *share* is this gate's share. None: leave."""
        with self.lock:
            self.slots.share = share
            self._set_up(self._limits, self._rules)
        self.tell_waiters()

    def pause(self) -> None:
        """Admit no client until :meth:`resume`; open sessions continue."""
        self.slots.paused = True

    def resume(self) -> None:
        """Admit clients again after :meth:`pause`."""
        self.slots.paused = False
        self.tell_waiters()

    def wrap(
        self, factory: Callable[[], asyncio.BaseProtocol], *, hostname: str | None = None
    ) -> Callable[[], asyncio.BaseProtocol]:
        """Return a protocol factory with this gate in front of *factory*.

        It is for ``loop.create_server()`` and aiosmtpd's Controller. A client that is refused gets
        421, and its connection is closed. It cannot be deferred, as the loop has accepted it
        already.

        :param factory: returns a protocol for one connection
        :param hostname: the name of this host in refusals; default: the system's host name
        """
        return wrapped(factory, gate=self, hostname=hostname)

    def __repr__(self) -> str:
        state = " paused" if self.slots.paused else ""
        return f"<Gate {self.count}/{self._limits.limit_connections}{state}>"
