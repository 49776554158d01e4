"""SpareDescriptor: a reserved file descriptor, to answer clients when no other is free (EMFILE)."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from smtpd_fork.gate import Refusal
from smtpd_fork.listeners.accepted_client import AcceptedClient

if TYPE_CHECKING:
    from smtpd_fork.listeners.listener import Listener
    from smtpd_fork.listeners.refusals import Refuser

__all__ = ["SpareDescriptor"]

log = logging.getLogger("smtpd_fork.listeners")


class SpareDescriptor:
    """Answers clients with 421 while the process has no free file descriptor.

    Without it, a client that the kernel has connected would wait without a reply until a
    descriptor is free. The reserved descriptor is closed, the client is accepted and refused, and
    the descriptor is opened again.

    :param refuser: answers the clients
    """

    def __init__(self, refuser: Refuser) -> None:
        self._refuser = refuser
        self._answered: int | None = None  # since descriptors ran out; None while there are some
        self._descriptor = self._open()

    def ran_out(self, error: OSError) -> None:
        """Log that no descriptor is free, once until :meth:`recovered`."""
        if self._answered is None:
            self._answered = 0
            log.error("cannot accept: %s; clients are answered 421", os.strerror(error.errno or 0))

    def answer(self, listener: Listener, maximum: int) -> None:
        """Answer up to *maximum* clients in the backlog of *listener*."""
        count = 0
        while count < maximum and self._descriptor is not None:
            os.close(self._descriptor)
            try:
                client = AcceptedClient(listener, *listener.accept())
            except OSError:
                self._descriptor = self._open()
                break
            text = "Too many connections, try again later"
            refusal = Refusal("descriptors", "", 0, 0, status="4.3.2", text=text)
            self._refuser.refuse(client, refusal)
            self._descriptor = self._open()
            count += 1
        if self._descriptor is None:
            self._descriptor = self._open()
        self._answered = (self._answered or 0) + count

    def recovered(self) -> None:
        """Log that clients can be accepted again, if they could not be."""
        if self._answered is not None:
            log.warning("accepting again; %d clients were answered 421 meanwhile", self._answered)
            self._answered = None

    def close(self) -> None:
        """Close the descriptor."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @staticmethod
    def _open() -> int | None:
        try:
            return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None  # the descriptor is in use elsewhere; the next answer() tries again
