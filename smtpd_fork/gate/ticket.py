"""Ticket: the right to one session, from accept(2) to close."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_fork.net import Peer

__all__ = ["Ticket"]


class Ticket:
    """One place in the gate's count. Whoever holds it gives it back, once, with :meth:`release`.

    A ticket is also a context manager that releases itself. It is made by ``Gate.admit()`` only.

    :ivar peer: whom it was given to, as accept(2) named it
    :ivar key: the source that is counted (see :func:`smtpd_fork.net.source_key`), or None
    :ivar since: when, by the gate's clock, in seconds
    :ivar released: whether the place has been given back; the gate sets it, under its lock
    """

    __slots__ = ("__weakref__", "_give_back", "key", "peer", "released", "since")

    def __init__(
        self, peer: Peer, key: str | None, since: float, give_back: Callable[[Ticket], None]
    ) -> None:
        self.peer = peer
        self.key = key
        self.since = since
        self.released = False
        self._give_back = give_back

    def release(self) -> None:
        """Give the place back; a second call, from whatever thread, does nothing."""
        self._give_back(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        state = "released" if self.released else "held"
        return f"<Ticket {self.key or 'unix'} {state}>"
