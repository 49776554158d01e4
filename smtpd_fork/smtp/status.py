"""Status: the properties of a connection that other modules read."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol

from smtpd_fork.dialogue.commands import State

if TYPE_CHECKING:
    import asyncio

    from smtpd_fork.dialogue.dialogue import Dialogue
    from smtpd_fork.dialogue.shared import Shared
    from smtpd_fork.gate import Refusal
    from smtpd_fork.peer_address import Peer
    from smtpd_fork.smtp.work import Work

__all__ = [
    "BLOCKED",
    "DELAYED",
    "ENDED",
    "PAUSED",
    "STOPPED",
    "TURN",
    "WATCHED",
    "Owner",
    "Status",
    "attribute",
]

BLOCKED, ENDED, PAUSED, TURN, WATCHED, DELAYED = 1, 2, 4, 8, 16, 32
"""Flags of a connection: the client does not read; it has closed for writing; we do not read; other
sessions run first; all replies are logged; replies are delayed by the tarpit."""

STOPPED = BLOCKED | TURN | DELAYED
"""Flags with which no commands are processed."""


class Stress(Protocol):
    """Knows whether few connection slots are free."""

    @property
    def active(self) -> bool:
        """Whether few slots are free, and ``--stress-timeout`` is set."""

    def shorten(self, seconds: float) -> float:
        """Return the present value of a time limit."""


class Owner(Protocol):
    """Decides on the clients of sessions and on their TLS handshakes."""

    @property
    def stress(self) -> Stress:
        """Knows whether few connection slots are free."""

    def begin_handshake(self, connection: Any) -> Refusal | None:
        """Count the beginning of a TLS handshake, or return why it is refused."""

    def end_handshake(self, connection: Any) -> None:
        """Count the success of a TLS handshake."""

    async def identify(self, connection: Any, peer: Peer, *, look_up: bool) -> Refusal | None:
        """Replace the client of a session by *peer*; return a refusal if it is not admitted.

        :param look_up: whether its reverse DNS name is looked up, if that is configured
        """

    def mark(self, connection: Any) -> None:
        """Delay replies in a session that has begun, if the client is suspicious."""


def attribute(path: str) -> Any:
    """Return a property that reads the attribute at *path*."""
    return property(attrgetter(path))


class Status:
    """The properties of a connection (also of a :class:`smtpd_fork.gate.ledger.Holder`)."""

    __slots__ = ()

    dialogue: Dialogue
    work: Work | None
    held: int

    shared: Shared = attribute("dialogue.shared")
    id: str = attribute("dialogue.id")
    """The id of the session in the log, in ``Received:`` and in the reply to DATA."""
    tls: bool = attribute("dialogue.tls")
    server: Any = attribute("dialogue.server")
    """The session object for handlers."""
    messages: int = attribute("dialogue.messages")
    """The number of accepted messages."""

    @property
    def helo(self) -> str:
        """The name from the client's HELO or EHLO, unchanged; empty before it."""
        return getattr(self.dialogue.session, "host_name", None) or ""

    @property
    def began(self) -> bool:
        """Whether the connection was made."""
        return self.dialogue.session is not None

    @property
    def gone(self) -> bool:
        """Whether the connection is lost."""
        return self.dialogue.state == State.GONE

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The task that runs for this session; an idle session has none."""
        return None if self.work is None else self.work.task

    @property
    def waits(self) -> bool:
        """Whether the session waits for its client, and nothing runs or is about to run."""
        return not (self.work or self.dialogue.waiting or self.held & (TURN | DELAYED))

    @property
    def blocked(self) -> bool:
        """Whether the client does not read."""
        return bool(self.held & BLOCKED)

    @property
    def ended_input(self) -> bool:
        """Whether the client has closed for writing."""
        return bool(self.held & ENDED)

    @property
    def phase(self) -> str:
        """The present activity: see :class:`smtpd_fork.gate.Entry`."""
        state = self.dialogue.state
        if not self.began or state == State.HANDSHAKE:
            return "handshake"
        if state >= State.LEAVING:
            return "closing"
        if self.held & DELAYED:
            return "tarpit"
        if self.work is not None and self.dialogue.awaited is None:
            return "handler"
        return "command" if self.dialogue.reading is None else "data"
