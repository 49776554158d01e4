"""Ticket: the right to one session, from accept(2) to close."""

from __future__ import annotations

import itertools
import secrets
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_fork.gate.client import Client
    from smtpd_fork.gate.ledger import Holder
    from smtpd_fork.peer_address import Peer

__all__ = ["Ticket", "new_session_id"]

_process = secrets.token_hex(3)
_numbers = itertools.count(1)


def new_session_id() -> str:
    """Return an id that is unique to this process, and most likely among processes."""
    return f"{_process}-{next(_numbers):x}"


class Ticket:
    """One connection slot. Its owner gives it back, once, with :meth:`release`.

    A ticket is also a context manager that releases itself. It is made by ``Gate.admit()`` only.

    :ivar client: the client, as the gate's rules see it
    :ivar peer: the same as accept(2) named it, or a PROXY header
    :ivar since: when, by the gate's clock, in seconds
    :ivar id: of the session; None until there is one, or until :meth:`name` is called
    :ivar holder: what holds it, for the ledger (see :mod:`smtpd_fork.gate.ledger`)
    :ivar listener: where the client connected, for the ledger
    :ivar host_name_dns: the client's name by the DNS, if it was asked for and leads back
    :ivar proxy: what a PROXY header said (aiosmtpd's ProxyData), or None
    :ivar sender: the proxy that said so, as accept(2) named it, or None
    :ivar released: whether the slot has been given back; the gate sets it, under its lock
    """

    __slots__ = (
        *("__weakref__", "_give_back", "client", "holder", "host_name_dns", "id", "listener"),
        *("peer", "proxy", "released", "sender", "since"),
    )

    def __init__(
        self, client: Client, peer: Peer, since: float, give_back: Callable[[Ticket], None]
    ) -> None:
        self.client = client
        self.peer = peer
        self.since = since
        self.released = False
        self.id: str | None = None
        self.holder: Holder | None = None
        self.listener: object = None
        self.proxy: Any = None
        self.sender: Peer = None
        self.host_name_dns: str | None = None
        self._give_back = give_back

    @property
    def key(self) -> str | None:
        """What the client is counted by, or None."""
        return self.client.source

    def name(self) -> str:
        """Return the id of the session; one that is still to come takes the id that this gives."""
        if self.id is None:
            self.id = new_session_id()
        return self.id

    def release(self) -> None:
        """Give the slot back; a second call, from any thread, does nothing."""
        self._give_back(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        state = "released" if self.released else "held"
        return f"<Ticket {self.key or 'unix'} {state}>"
