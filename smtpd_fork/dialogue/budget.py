"""Budget: counts the memory that sessions and clients use, and enforces limits.

The first :data:`ALLOWANCE` bytes of a session are not counted, so that most sessions need no call
of this module. Further bytes (of a message, an envelope, or buffered input and output) are charged
to the session, to its client, and to the total. The total is at most ``limit``, plus the
allowances; for one client it is at most ``share``, plus the allowances of its sessions.

A message that exceeds a limit is read and dropped (452). But a client could use all memory and then
send almost nothing until its session ends. Therefore, while little memory is left, the largest
sessions that make no progress are ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from smtpd_fork.peer_address import host_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_fork.peer_address import Peer

__all__ = ["ALLOWANCE", "Budget", "Holder"]

ALLOWANCE = 64 * 1024
"""Bytes of each session that are not counted; most messages are smaller."""

SHORT = 0.75
"""Part of the limit above which idle sessions are ended."""

IDLE_SECONDS = 30.0
"""A session whose memory has not grown by a tenth in this time is idle."""

GROWTH = 1.1

CHECK_SECONDS = 1.0
"""Interval of the checks for idle sessions while little memory is left."""


class Holder(Protocol):
    """A session that uses memory."""

    loop: Any
    """The event loop; its ``time()`` and ``call_later()`` are used."""
    peer: Peer
    """The client's address."""

    def end_for_memory(self, held: int) -> bool:
        """End the session to free memory; return False if a handler is processing its message."""


class _Held:
    """The memory of a session."""

    __slots__ = ("_mark", "client", "held", "since")

    def __init__(self, client: str | None) -> None:
        self.client = client  # the key of its client; None: its client is not counted
        self.held = 0
        self.since = 0.0  # the time of the last growth by a tenth
        self._mark = 0.0

    def change(self, held: int, now: float) -> None:
        self.held = held
        if held > self._mark or held < self._mark / GROWTH / GROWTH:
            self._mark = held * GROWTH
            self.since = now


class Budget:
    """Counts the memory of all sessions of a server.

    :param limit: maximum bytes of all sessions; 0 is no limit
    :param share: maximum bytes of one client's sessions; 0 is no limit
    :param client_of: returns the key by which a client is counted, or None to not count it;
        default: its IP address
    """

    __slots__ = (
        *("_by_client", "_client_of", "_by_holder", "_checked", "_timer"),
        *("limit", "share", "used"),
    )

    def __init__(
        self, limit: int, share: int = 0, client_of: Callable[[Peer], str | None] = host_of
    ) -> None:
        self.limit = limit
        self.share = share
        self.used = 0  # bytes of all sessions
        self._client_of = client_of
        self._by_holder: dict[Holder, _Held] = {}
        self._by_client: dict[str, int] = {}
        self._checked = 0.0
        self._timer: object | None = None

    def used_by(self, client: str) -> int:
        """Return the bytes of the sessions of one client."""
        return self._by_client.get(client, 0)

    def hold(self, holder: Holder, held: int) -> bool:
        """Set the bytes of a session to *held*.

        :returns: whether the limits allow it; if not, the session must reduce its memory at once
        """
        holding = self._by_holder.get(holder)
        if holding is None:
            if held <= 0:
                return True
            holding = self._by_holder[holder] = _Held(self._client_of(holder.peer))
        now = holder.loop.time()
        more = held - holding.held
        holding.change(held, now)
        self._add(holding.client, more)
        if held <= 0:
            del self._by_holder[holder]
        if more <= 0 or self._fits(0, holding.client, SHORT):
            return True
        self._end_idle_sessions(now, holding.client, 0)
        if self._timer is None:
            self._timer = holder.loop.call_later(CHECK_SECONDS, self._check, holder.loop)
        return self._fits(0, holding.client)

    def has_room(self, holder: Holder, more: int) -> bool:
        """Return whether the limits allow a session *more* bytes."""
        if not self.limit and not self.share:
            return True
        holding = self._by_holder.get(holder)
        client = holding.client if holding is not None else self._client_of(holder.peer)
        if not self._fits(more, client):
            self._end_idle_sessions(holder.loop.time(), client, more)
        return self._fits(more, client)

    def _add(self, client: str | None, more: int) -> None:
        self.used += more
        if client is not None:
            held = self._by_client[client] = self._by_client.get(client, 0) + more
            if not held:
                del self._by_client[client]

    def _fits(self, more: int, client: str | None, part: float = 1) -> bool:
        """Return whether *more* bytes fit in *part* of the limit, and in the client's share."""
        in_limit = not self.limit or self.used + more <= self.limit * part
        return in_limit and self._is_in_share(more, client)

    def _is_in_share(self, more: int, client: str | None) -> bool:
        if not self.share or client is None:
            return True
        return self._by_client.get(client, 0) + more <= self.share

    def _end_idle_sessions(self, now: float, client: str | None, more: int) -> None:
        """End idle sessions, the largest first, until *more* bytes fit.

        Sessions of *client* are also ended while it exceeds its share. A session that has ended is
        no longer charged.
        """
        if now < self._checked + CHECK_SECONDS:
            return  # the last check, which was just now, did not free enough
        idle = [
            (holding.held, holder)
            for holder, holding in self._by_holder.items()
            if now - holding.since >= IDLE_SECONDS
        ]
        idle.sort(key=lambda each: each[0], reverse=True)
        for held, holder in idle:
            holding = self._by_holder.get(holder)
            own = holding is not None and holding.client == client
            if not (self._fits(more, None, SHORT) and (self._is_in_share(more, client) or not own)):
                holder.end_for_memory(held)
        if not self._fits(more, client, SHORT):
            self._checked = now

    def _check(self, loop: Any) -> None:
        """End idle sessions while little memory is left, also if no session requests memory."""
        self._timer = None
        self._end_idle_sessions(loop.time(), None, 0)
        if not self._fits(0, None, SHORT):
            self._timer = loop.call_later(CHECK_SECONDS, self._check, loop)
