"""Gate: counts the sessions, in all and by source, and says who may come in.

The counts go up in :meth:`Gate.admit` and down in :meth:`Gate._give_back`, and nowhere else.
Everything is synchronous and does no I/O. A lock makes one gate safe to share between servers
in several threads (aiosmtpd's Controller runs in a thread of its own); it is never held while
somebody else's code runs.
"""

from __future__ import annotations

import logging
import time
from threading import Lock
from typing import TYPE_CHECKING

from smtpd_fork.config import LIMIT_CONNECTIONS, MAX_FROM_IP
from smtpd_fork.gate.limits import Limits
from smtpd_fork.gate.refusal_log import RefusalLog
from smtpd_fork.gate.ticket import Ticket
from smtpd_fork.gate.verdict import Full, Refusal, Verdict
from smtpd_fork.gate.wrap import gated
from smtpd_fork.net import source_key

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from smtpd_fork.net import Peer

__all__ = ["Gate"]

log = logging.getLogger("smtpd_fork.gate")


class Gate:
    """Counts sessions and gives tickets to those that fit.

    :param limit_connections: sessions in all, at least 1
    :param max_from_ip: sessions from one address; 0 is no limit
    :param clock: returns seconds, never backwards
    :raises ValueError: a limit out of its range

    One gate may be shared by several servers, in several threads: they then share the limits.
    """

    def __init__(
        self,
        *,
        limit_connections: int = LIMIT_CONNECTIONS,
        max_from_ip: int = MAX_FROM_IP,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = Limits(limit_connections=limit_connections, max_from_ip=max_from_ip)
        self._clock = clock
        self._lock = Lock()
        self._count = 0
        self._by_source: dict[str, int] = {}
        self._paused = False
        self._waiters: list[Callable[[], None]] = []
        self.refusals = RefusalLog(clock=clock)
        """The refusals' log: each source's first at once, the rest in summaries."""

    # -- admission ---------------------------------------------------------------------------

    def admit(self, peer: Peer) -> Verdict:
        """Count *peer* in, or say why not.

        :returns: a :class:`Ticket`, to be released when the session ends; a :class:`Refusal` if
            the source has too many sessions; :class:`Full` if there is no room for anybody
        """
        key = source_key(peer)
        with self._lock:
            limits = self._limits
            mine = 0
            if key is not None:
                mine = self._by_source.get(key, 0) + 1
                if 0 < limits.max_from_ip < mine:
                    return Refusal("max_from_ip", key, mine, limits.max_from_ip)
            if self._paused or self._count >= limits.limit_connections:
                return Full(self._count + 1, limits.limit_connections, self._paused)
            self._count += 1
            if key is not None:
                self._by_source[key] = mine
        return Ticket(peer, key, self._clock(), self._give_back)

    def _give_back(self, ticket: Ticket) -> None:
        """Count a ticket out, once; called by the ticket."""
        with self._lock:
            if ticket.released:
                return
            ticket.released = True
            self._count -= 1
            if ticket.key is not None:
                left = self._by_source[ticket.key] - 1
                if left:
                    self._by_source[ticket.key] = left
                else:
                    del self._by_source[ticket.key]
        if self._waiters:
            self._tell_waiters()

    # -- waiting for room --------------------------------------------------------------------

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call *callback* once, as soon as :attr:`full` is False (at once if it is already).

        It is called in whatever thread gave the room, must not block, and may find the room
        taken again. A callback that is already waiting is not added twice.
        """
        with self._lock:
            if callback not in self._waiters:
                self._waiters.append(callback)
        self._tell_waiters()

    def forget(self, callback: Callable[[], None]) -> None:
        """Take back what :meth:`when_room` was told; no error if there is nothing to take."""
        with self._lock:
            if callback in self._waiters:
                self._waiters.remove(callback)

    def _tell_waiters(self) -> None:
        # All of them, not one per place: the one that is told may have nobody in its backlog.
        with self._lock:
            if self._paused or self._count >= self._limits.limit_connections:
                return
            waiters, self._waiters = self._waiters, []
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
        return self._paused or self._count >= self._limits.limit_connections

    @property
    def count(self) -> int:
        """Sessions now, in all."""
        return self._count

    def count_from(self, peer: Peer) -> int:
        """Return how many sessions the source of *peer* has now."""
        key = source_key(peer)
        return self._by_source.get(key, 0) if key is not None else 0

    @property
    def sources(self) -> dict[str, int]:
        """A copy of the sessions by source; sources without a session are not in it."""
        with self._lock:
            return dict(self._by_source)

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
            self._limits = limits
        self._tell_waiters()

    @property
    def paused(self) -> bool:
        """Whether the gate was paused."""
        return self._paused

    def pause(self) -> None:
        """Let nobody in until :meth:`resume`; sessions that are in go on."""
        self._paused = True

    def resume(self) -> None:
        """Let sessions in again after :meth:`pause`."""
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
        return gated(factory, admit=self.admit, refusals=self.refusals, hostname=hostname)

    def __repr__(self) -> str:
        limit = self._limits.limit_connections
        return f"<Gate {self._count}/{limit}{' paused' if self._paused else ''}>"
