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
    """

    __slots__ = ("__weakref__", "_give_back", "key", "peer", "since")

    def __init__(
        self, peer: Peer, key: str | None, since: float, give_back: Callable[[Ticket], None]
    ) -> None:
        self.peer = peer
        self.key = key
        self.since = since
        self._give_back = give_back

    @property
    def released(self) -> bool:
        """Whether the place has been given back."""
        return self._give_back is _nothing_left

    def release(self) -> None:
        """Give the place back; a second call does nothing."""
        # Swapped before the call, so that a release from inside a release finds nothing to do.
        give_back, self._give_back = self._give_back, _nothing_left
        give_back(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        state = "released" if self.released else "held"
        return f"<Ticket {self.key or 'unix'} {state}>"


def _nothing_left(_: Ticket) -> None:
    """Stand in for the gate once a ticket is released."""
