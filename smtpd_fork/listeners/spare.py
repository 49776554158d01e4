"""Spare: a file descriptor in reserve, to answer clients with when there are no others (EMFILE)."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from smtpd_fork.gate import Refusal
from smtpd_fork.listeners.accepted_client import AcceptedClient

if TYPE_CHECKING:
    from smtpd_fork.listeners.listener import Listener
    from smtpd_fork.listeners.refusals import Refuser

__all__ = ["Spare"]

log = logging.getLogger("smtpd_fork.listeners")


class Spare:
    """The descriptor.

    Without it a client that the kernel has connected would hang unanswered until there are
    descriptors again; with it, the client gets 421.

    :param refuser: answers the clients
    """

    def __init__(self, refuser: Refuser) -> None:
        self._refuser = refuser
        self._answered: int | None = None  # since descriptors ran out; None while there are some
        self._descriptor = self._open()

    def ran_out(self, error: OSError) -> None:
        """Take note that there are no descriptors; logged once an episode."""
        if self._answered is None:
            self._answered = 0
            log.error("cannot accept: %s; clients are answered 421", os.strerror(error.errno or 0))

    def answer(self, listener: Listener, at_most: int) -> None:
        """Answer up to *at_most* clients in the backlog of *listener*."""
        count = 0
        while count < at_most and self._descriptor is not None:
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
        """Take note that clients can be accepted."""
        if self._answered is not None:
            log.warning("accepting again; %d clients were answered 421 meanwhile", self._answered)
            self._answered = None

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
