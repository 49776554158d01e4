"""The list of the connection slots in use, with the session or the client of each."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smtpd_fork.gate.ticket import Ticket
    from smtpd_fork.peer_address import Peer

__all__ = ["Entry", "Holder", "entries", "entry_of"]


class Holder(Protocol):
    """The interface of the object that holds a ticket, such as a session."""

    @property
    def phase(self) -> str:
        """The current phase; see :class:`Entry`."""

    @property
    def tls(self) -> bool:
        """Whether TLS is in use."""

    @property
    def messages(self) -> int:
        """The number of messages accepted so far."""

    @property
    def helo(self) -> str:
        """The client's HELO name; empty before HELO."""

    def kick(self, reply: bytes) -> None:
        """End the session, with *reply* as the last reply if the protocol allows one."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One connection slot in use.

    :ivar id: the session's id, as in the log; also before the session begins
    :ivar since: when the client was admitted, by the gate's clock
    :ivar peer: the client as accept(2) named it, or behind a proxy its true address
    :ivar sender: the proxy, as accept(2) named it; None without one
    :ivar key: the address or network that it is counted by, or None
    :ivar exempt: whether the limits per client do not apply
    :ivar seconds: how long the slot has been in use
    :ivar listener: where the client connected; empty if that is not known
    :ivar phase: ``arriving``, ``proxy-header``, ``dns``, ``greet-pause``, ``handshake``,
        ``command``, ``data``, ``handler``, ``tarpit`` or ``closing``
    :ivar tls: whether TLS is in use
    :ivar messages: messages that were accepted so far
    :ivar helo: the client's HELO name, unchanged; empty before HELO
    """

    id: str
    since: float
    peer: Peer
    sender: Peer
    key: str | None
    exempt: bool
    seconds: float
    listener: str
    phase: str
    tls: bool
    messages: int
    helo: str


def entries(
    tickets: Iterable[Ticket], now: float, limit: int | None, after: tuple[float, str] | None
) -> list[Entry]:
    """Return a page of the ledger; see :meth:`smtpd_fork.Gate.ledger`."""
    by_age = sorted(tickets, key=_age)
    begin = 0 if after is None else bisect_right(by_age, after, key=_age)
    end = None if limit is None else begin + limit
    return [entry_of(ticket, now) for ticket in by_age[begin:end]]


def _age(ticket: Ticket) -> tuple[float, str]:
    return ticket.since, ticket.name()


def entry_of(ticket: Ticket, now: float) -> Entry:
    """Return the entry of a ticket."""
    holder = ticket.holder
    return Entry(
        id=ticket.name(),
        since=ticket.since,
        peer=ticket.peer,
        sender=ticket.sender,
        key=ticket.key,
        exempt=ticket.client.exempt,
        seconds=now - ticket.since,
        listener=str(ticket.listener or ""),
        phase=holder.phase if holder is not None else "arriving",
        tls=holder.tls if holder is not None else False,
        messages=holder.messages if holder is not None else 0,
        helo=holder.helo if holder is not None else "",
    )
