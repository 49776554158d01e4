"""Waiters: callbacks that are called when a gate has a free connection slot."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Lock

__all__ = ["Waiters"]

log = logging.getLogger("smtpd_fork.gate")


class Waiters:
    """The callbacks that wait for a slot; each is called once.

    :param lock: of the gate; it is not held during a callback
    """

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        self._all: list[tuple[Callable[[], None], bool]] = []

    def __bool__(self) -> bool:
        return bool(self._all)

    def add(self, callback: Callable[[], None], reserved: bool) -> None:
        """Add a callback; see :meth:`smtpd_fork.Gate.when_room`."""
        with self._lock:
            if (callback, reserved) not in self._all:
                self._all.append((callback, reserved))

    def remove(self, callback: Callable[[], None]) -> None:
        """Remove a callback; no error if it does not wait."""
        with self._lock:
            self._all = [each for each in self._all if each[0] != callback]

    def call(self, *, for_all: bool) -> None:
        """Call the callbacks that can use a free slot.

        All of them are called, not one per slot, as a listener may have no client in its backlog.

        :param for_all: whether a slot is free that is not reserved for exempt clients
        """
        with self._lock:
            waiters = [callback for callback, reserved in self._all if reserved or for_all]
            self._all = [] if for_all else [each for each in self._all if not each[1]]
        for waiter in waiters:
            try:
                waiter()
            except Exception:
                # A callback that fails, as its loop is closed, must not make the release fail.
                log.exception("a callback of when_room failed")
