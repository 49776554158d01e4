"""Budget: the memory that is held for clients, and which session and which client holds it.

A session holds up to :data:`ALLOWANCE` bytes that are not charged: ordinary ones never come here.
What it holds beyond that (a message, an envelope, input and output that wait) is charged to the
session, to its client, and to all. The law: what is held is at most ``limit``, and an allowance a
session; for one client ``share``, and its sessions' allowances.

A message that does not fit is read and forgotten (452). But a client that sends what it may, and
then next to nothing, would keep others out for as long as its session lasts. So while memory is
short the session that holds the most, and does not go on, is ended first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from smtpd_fork.peer_address import host_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_fork.peer_address import Peer

__all__ = ["ALLOWANCE", "Budget", "Holder"]

ALLOWANCE = 64 * 1024
"""Bytes of each session that are not charged: what most messages are smaller than."""

SHORT = 0.75
"""Of the limit; past it idle sessions are ended."""

IDLE_SECONDS = 30.0
"""A session that has not grown by a tenth in that time does not go on: it is idle."""

GROWTH = 1.1

LOOK_SECONDS = 1.0
"""Between two looks for idle sessions, while memory is short."""


class Holder(Protocol):
    """A session, as far as its memory goes."""

    loop: Any
    """The event loop whose time counts: ``time()`` and ``call_later()`` are asked."""
    peer: Peer
    """The client."""

    def give_way(self, held: int) -> bool:
        """End, as memory is short; False if that cannot be: a handler works for it."""


class _Held:
    """What one session holds."""

    __slots__ = ("_mark", "client", "held", "since")

    def __init__(self, client: str | None) -> None:
        self.client = client  # what its client is counted as; None is not counted
        self.held = 0
        self.since = 0.0  # when it had grown by a tenth
        self._mark = 0.0

    def change(self, held: int, now: float) -> None:
        self.held = held
        if held > self._mark or held < self._mark / GROWTH / GROWTH:
            self._mark = held * GROWTH
            self.since = now


class Budget:
    """Counts bytes; shared by the sessions of a server.

    :param limit: bytes that all sessions may hold; 0 is no limit
    :param share: bytes that one client's sessions may hold; 0 is no limit
    :param client_of: what a client is counted as, or None if it is not; default: its IP address
    """

    __slots__ = (
        *("_by_client", "_client_of", "_by_holder", "_looked", "_timer"),
        *("limit", "share", "used"),
    )

    def __init__(
        self, limit: int, share: int = 0, client_of: Callable[[Peer], str | None] = host_of
    ) -> None:
        self.limit = limit
        self.share = share
        self.used = 0  # bytes that are held now
        self._client_of = client_of
        self._by_holder: dict[Holder, _Held] = {}
        self._by_client: dict[str, int] = {}
        self._looked = 0.0
        self._timer: object | None = None

    def used_by(self, client: str) -> int:
        """Return the bytes that the sessions of one client hold."""
        return self._by_client.get(client, 0)

    def hold(self, holder: Holder, held: int) -> bool:
        """Charge *held* bytes to a session, in place of what it was charged before.

        :returns: whether it may hold them; if not, it is to hold less at once
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
        self._relieve(now, holding.client, 0)
        if self._timer is None:
            self._timer = holder.loop.call_later(LOOK_SECONDS, self._look, holder.loop)
        return self._fits(0, holding.client)

    def has_room(self, holder: Holder, more: int) -> bool:
        """Whether a session may hold so many bytes *more* than it does."""
        if not self.limit and not self.share:
            return True
        holding = self._by_holder.get(holder)
        client = holding.client if holding is not None else self._client_of(holder.peer)
        if not self._fits(more, client):
            self._relieve(holder.loop.time(), client, more)
        return self._fits(more, client)

    def _add(self, client: str | None, more: int) -> None:
        self.used += more
        if client is not None:
            held = self._by_client[client] = self._by_client.get(client, 0) + more
            if not held:
                del self._by_client[client]

    def _fits(self, more: int, client: str | None, part: float = 1) -> bool:
        """Whether so many bytes more are in the limit, or in a part of it, and in the share."""
        in_limit = not self.limit or self.used + more <= self.limit * part
        return in_limit and self._is_in_share(more, client)

    def _is_in_share(self, more: int, client: str | None) -> bool:
        if not self.share or client is None:
            return True
        return self._by_client.get(client, 0) + more <= self.share

    def _relieve(self, now: float, client: str | None, more: int) -> None:
        """End sessions that are idle, the largest first: any, or those of a client past its share.

        One that is ended is charged for nothing any more when it returns.
        """
        if now < self._looked + LOOK_SECONDS:
            return  # no session was idle a moment ago
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
                holder.give_way(held)
        if not self._fits(more, client, SHORT):
            self._looked = now

    def _look(self, loop: Any) -> None:
        """Look for idle sessions while memory is short: a refused client asks for none."""
        self._timer = None
        self._relieve(loop.time(), None, 0)
        if not self._fits(0, None, SHORT):
            self._timer = loop.call_later(LOOK_SECONDS, self._look, loop)
