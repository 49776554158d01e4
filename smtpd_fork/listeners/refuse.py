"""Refusing: one reply on a raw socket, before any transport or TLS exists."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Spare", "refuse"]

_NOW = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_EARLY_BYTES = 4096
"""What an early talker may have sent already; read, as close(2) with unread bytes is a reset."""


def refuse(sock: socket.socket, reply: bytes) -> None:
    """Send *reply* on an accepted socket without ever waiting, and close it.

    A peer that is gone, or cannot take one line, has had its answer.
    """
    with suppress(OSError):
        sock.send(reply, _NOW)
        sock.recv(_EARLY_BYTES, _NOW)
    with suppress(OSError):
        sock.close()


class Spare:
    """A descriptor kept in reserve, to answer clients with when there are no others (EMFILE).

    Without it a client that the kernel has connected would hang unanswered until there are
    descriptors again; with it, it is told to come back.
    """

    def __init__(self) -> None:
        self._descriptor = self._open()

    def refuse(
        self, listening: socket.socket, answer: Callable[[socket.socket], None], at_most: int
    ) -> int:
        """Have up to *at_most* clients in the backlog of *listening* answered; return how many.

        :param answer: tells a client, and closes its socket
        """
        answered = 0
        while answered < at_most and self._descriptor is not None:
            os.close(self._descriptor)
            try:
                sock, _ = listening.accept()
            except OSError:
                self._descriptor = self._open()
                break
            answer(sock)
            answered += 1
            self._descriptor = self._open()
        if self._descriptor is None:
            self._descriptor = self._open()
        return answered

    def close(self) -> None:
        """Give the descriptor back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @staticmethod
    def _open() -> int | None:
        try:
            return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None  # somebody else was faster; the next refusal tries again
