"""GroupedDelivery: a message that a thread stores in a group with others, decided once.

A thread stores the message while the event loop waits for it. Either can be first: the thread with
the message on the disk, or the loop with a time limit that has passed. The first one decides: the
message is stored and answered 250, or it is given up, and then nothing of it stays.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    import asyncio

__all__ = ["GroupedDelivery", "Waiting", "tell"]


class GroupedDelivery:
    """What decides whether a message is stored.

    :param content_size: bytes of the message
    :ivar error: why it could not be stored
    """

    def __init__(self, content_size: int) -> None:
        self.content_size = content_size
        self.error: Exception | None = None
        self._lock = threading.Lock()
        self._stored: bool | None = None

    @property
    def stored(self) -> bool:
        """Whether the message is on the disk, and stays there."""
        return self._stored is True

    @property
    def given_up(self) -> bool:
        """Whether the message was given up, or has failed."""
        return self._stored is False

    def give_up(self) -> bool:
        """Have the message not be stored; return whether that is so, or it is stored already."""
        return not self.decide(stored=False)

    def decide(self, *, stored: bool) -> bool:
        """Return whether the message is stored: *stored*, unless that was decided before."""
        with self._lock:
            if self._stored is None:
                self._stored = stored
            return self._stored


D = TypeVar("D", bound=GroupedDelivery)


class Waiting(NamedTuple, Generic[D]):
    """A message that waits to be written, or is being written.

    :ivar loop: that waits for it
    :ivar stored: done once it is stored; else it has the error
    """

    delivery: D
    loop: asyncio.AbstractEventLoop
    stored: asyncio.Future[None]


def tell(group: Sequence[Waiting[D]]) -> None:
    """Tell the sessions that wait, in their loop, what became of their messages."""
    for delivery, _, stored in group:
        if stored.done():
            continue  # the session gave it up
        if delivery.stored:
            stored.set_result(None)
        else:
            stored.set_exception(delivery.error or OSError(errno.EIO, "not stored"))
