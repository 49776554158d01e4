"""GroupedDelivery: a message that a thread stores in a group with others.

A thread stores the message while a session in the event loop waits. The message is either on disk
first, or the time limit of the session expires first. The first of both decides: the message is
stored and answered with 250, or it is given up and removed completely.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    import asyncio

__all__ = ["GroupedDelivery", "Waiting", "notify"]


class GroupedDelivery:
    """A message whose result, stored or given up, is decided exactly once.

    :param content_size: size of the message in bytes
    :ivar error: why the message could not be stored, or None
    """

    def __init__(self, content_size: int) -> None:
        self.content_size = content_size
        self.error: Exception | None = None
        self._lock = threading.Lock()
        self._stored: bool | None = None

    @property
    def stored(self) -> bool:
        """Whether the message is stored."""
        return self._stored is True

    @property
    def given_up(self) -> bool:
        """Whether the message was given up, or has failed."""
        return self._stored is False

    def give_up(self) -> bool:
        """Give the message up; return False if it is stored already."""
        return not self.decide(stored=False)

    def decide(self, *, stored: bool) -> bool:
        """Set the result unless it was set before; return whether the message is stored."""
        with self._lock:
            if self._stored is None:
                self._stored = stored
            return self._stored


D = TypeVar("D", bound=GroupedDelivery)


class Waiting(NamedTuple, Generic[D]):
    """A message that waits to be written, or is being written.

    :ivar loop: the event loop of the waiting session
    :ivar stored: the future that gets the result, or the error
    """

    delivery: D
    loop: asyncio.AbstractEventLoop
    stored: asyncio.Future[None]


def notify(group: Sequence[Waiting[D]]) -> None:
    """Set the results of messages, in the event loop of their sessions."""
    for delivery, _, stored in group:
        if stored.done():
            continue  # the session was cancelled
        if delivery.stored:
            stored.set_result(None)
        else:
            stored.set_exception(delivery.error or OSError(errno.EIO, "not stored"))
