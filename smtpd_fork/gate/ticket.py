"""Ticket: a connection slot, which a client holds from accept(2) until its session ends."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable  # help(Ticket) evaluates the types of the fields
from typing import Any, Self

from msgspec import Struct

from smtpd_fork.gate.client import Client  # noqa: TC001
from smtpd_fork.gate.ledger import Holder  # noqa: TC001
from smtpd_fork.peer_address import Peer  # noqa: TC001

__all__ = ["Ticket", "new_session_id"]

_process = secrets.token_hex(3)
_numbers = itertools.count(1)


def new_session_id() -> str:
    """Return an id that is unique in this process, and almost certainly among processes."""
    return f"{_process}-{next(_numbers):x}"


class Ticket(Struct, eq=False, weakref=True):
    """One connection slot. Its owner must :meth:`release` it.

    A ticket is also a context manager that releases itself. Only ``Gate.admit()`` creates tickets.

    :ivar client: the client, as the gate's rules use it
    :ivar peer: its address, from accept(2) or a PROXY header
    :ivar since: the time of admission, by the gate's clock, in seconds
    :ivar id: of the session; None until there is a session, or until :meth:`name` is called
    :ivar holder: the connection, for ``Gate.ledger()`` (see :mod:`smtpd_fork.gate.ledger`)
    :ivar listener: the listener that accepted the client, for ``Gate.ledger()``
    :ivar listed_by: the blocklists that list the client, if their weight is too small to refuse it
    :ivar host_name_dns: the client's reverse DNS name, if it was looked up and is confirmed by a
        forward lookup
    :ivar proxy: the PROXY header (aiosmtpd's ProxyData), or None
    :ivar sender: the address of the proxy, from accept(2), or None
    :ivar released: whether the slot was released; the gate sets it under its lock
    """

    client: Client
    peer: Peer
    since: float
    _release_slot: Callable[[Ticket], None]
    id: str | None = None
    holder: Holder | None = None
    listener: object = None
    listed_by: str = ""
    host_name_dns: str | None = None
    proxy: Any = None
    sender: Peer = None
    released: bool = False

    @property
    def key(self) -> str | None:
        """The address or network that the client is counted by, or None."""
        return self.client.key

    def name(self) -> str:
        """Return the id of the session; also possible before the session begins."""
        if self.id is None:
            self.id = new_session_id()
        return self.id

    def release(self) -> None:
        """Release the slot; a second call, from any thread, has no effect."""
        self._release_slot(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        state = "released" if self.released else "held"
        return f"<Ticket {self.key or 'unix'} {state}>"
