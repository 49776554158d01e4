"""Status: what a connection can be asked about itself."""

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
"""What keeps bytes from flowing: the client does not read; it has closed for writing; we do not
read; others have their turn first. What does not: the log has all that is sent. And the last: the
replies wait in the tarpit."""

STOPPED = BLOCKED | TURN | DELAYED
"""What keeps commands from being acted on."""


class Stress(Protocol):
    """Knows whether connection slots are short."""

    @property
    def on(self) -> bool:
        """Whether they are, and that makes a difference."""

    def shorten(self, seconds: float) -> float:
        """Return a time limit as it is now."""


class Owner(Protocol):
    """Judges the clients of sessions, and their TLS handshakes."""

    @property
    def stress(self) -> Stress:
        """Knows whether connection slots are short."""

    def begin_handshake(self, connection: Any) -> Refusal | None:
        """Return why a session is not to begin one."""

    def end_handshake(self, connection: Any) -> None:
        """Take note that one has succeeded."""

    async def identify(self, connection: Any, peer: Peer, *, look_up: bool) -> Refusal | None:
        """Have *peer* take the place of a session's client; return why it may not.

        :param look_up: whether its name is to be looked up, if that is configured
        """

    def mark(self, connection: Any) -> None:
        """Slow down the client of a session that has begun, if it is suspected."""


def attribute(path: str) -> Any:
    """Return a property that is an attribute of something else."""
    return property(attrgetter(path))


class Status:
    """A connection, as far as others ask about it (also :class:`smtpd_fork.gate.ledger.Holder`)."""

    __slots__ = ()

    dialogue: Dialogue
    work: Work | None
    held: int

    shared: Shared = attribute("dialogue.shared")
    id: str = attribute("dialogue.id")
    """Names the session in the logs, in ``Received:`` and in the reply to DATA."""
    tls: bool = attribute("dialogue.tls")
    server: Any = attribute("dialogue.server")
    """The session as handlers know it."""
    messages: int = attribute("dialogue.messages")
    """That were accepted so far."""

    @property
    def helo(self) -> str:
        """The name that the client gave itself, as it came; empty if it gave none."""
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
        """What runs for this session now; an idle one has none."""
        return None if self.work is None else self.work.task

    @property
    def waits(self) -> bool:
        """Whether nothing runs and nothing is about to: the session waits for its client."""
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
        """What it does now: see :class:`smtpd_fork.gate.Entry`."""
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
