"""Hooks: the methods that a handler may have, as protocols for type checkers.

A handler has any of these methods, and needs no base class. ``server`` is the session object of the
client (:class:`smtpd_fork.SMTP`). A hook is a coroutine function, or a function that returns an
awaitable; its parameters may have any names. docs/handlers.md describes the hooks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from aiosmtpd.handlers import Sink as AiosmtpdSink

from smtpd_fork.filters import Filter
from smtpd_fork.handlers.chain import Chain
from smtpd_fork.handlers.route import Route
from smtpd_fork.sinks import Sink

if TYPE_CHECKING:
    from aiosmtpd.proxy_protocol import ProxyData

    from smtpd_fork.dialogue import Answer, Envelope, Session
    from smtpd_fork.smtp import SMTP

__all__ = [
    "Handler", "HandlesAUTH", "HandlesCONNECT", "HandlesDATA", "HandlesDISCONNECT", "HandlesEHLO",
    "HandlesException", "HandlesHELO", "HandlesMAIL", "HandlesNOOP", "HandlesPROXY", "HandlesQUIT",
    "HandlesRCPT", "HandlesRSET", "HandlesSTARTTLS", "HandlesVRFY", "ProcessesMessage",
]  # fmt: skip


class HandlesCONNECT(Protocol):
    """Called before the greeting."""

    def handle_CONNECT(self, server: SMTP, session: Session, /) -> Awaitable[Answer]:
        """Return MISSING to send the greeting, or a reply 4yz or 5yz to refuse the client."""


class HandlesDISCONNECT(Protocol):
    """Called when the connection is closed."""

    def handle_DISCONNECT(self, server: SMTP, session: Session, /) -> Awaitable[object]:
        """Return anything; the result is ignored."""


class HandlesHELO(Protocol):
    """Called at HELO."""

    def handle_HELO(
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, /
    ) -> Awaitable[Answer]:
        """Set ``session.host_name`` and return a reply."""


class HandlesEHLO(Protocol):
    """Called at EHLO and LHLO."""

    def handle_EHLO(
        self,
        server: SMTP,
        session: Session,
        envelope: Envelope,
        hostname: str,
        responses: list[str],
        /,
    ) -> Awaitable[Sequence[str] | Answer]:
        """Set ``session.host_name`` and return the lines of the reply."""


class HandlesSTARTTLS(Protocol):
    """Called after the handshake of STARTTLS."""

    def handle_STARTTLS(
        self, server: SMTP, session: Session, envelope: Envelope, /
    ) -> bool | Awaitable[bool]:
        """Return whether the session may continue."""


class HandlesAUTH(Protocol):
    """Called at AUTH, before the mechanism."""

    def handle_AUTH(
        self, server: SMTP, session: Session, envelope: Envelope, args: list[str], /
    ) -> Awaitable[Answer]:
        """Return MISSING to call the mechanism, or a reply."""


class HandlesPROXY(Protocol):
    """Called with a PROXY header."""

    def handle_PROXY(
        self, server: SMTP, session: Session, envelope: Envelope, proxy_data: ProxyData, /
    ) -> Awaitable[object]:
        """Return a true value to accept the client."""


class HandlesMAIL(Protocol):
    """Called at MAIL."""

    def handle_MAIL(
        self,
        server: SMTP,
        session: Session,
        envelope: Envelope,
        address: str,
        options: list[str],
        /,
    ) -> Awaitable[Answer]:
        """Return MISSING to accept the sender, or set ``envelope.mail_from`` and return a reply."""


class HandlesRCPT(Protocol):
    """Called at RCPT."""

    def handle_RCPT(
        self,
        server: SMTP,
        session: Session,
        envelope: Envelope,
        address: str,
        options: list[str],
        /,
    ) -> Awaitable[Answer]:
        """Return MISSING to accept the recipient, or change ``rcpt_tos`` and return a reply."""


class HandlesDATA(Protocol):
    """Called with every message."""

    def handle_DATA(
        self, server: SMTP, session: Session, envelope: Envelope, /
    ) -> Awaitable[Answer | Sequence[Answer]]:
        """Return a reply; in LMTP it may be a sequence with a reply for each recipient."""


class HandlesRSET(Protocol):
    """Called at RSET."""

    def handle_RSET(
        self, server: SMTP, session: Session, envelope: Envelope, /
    ) -> Awaitable[Answer]:
        """Return MISSING or a reply."""


class HandlesNOOP(Protocol):
    """Called at NOOP."""

    def handle_NOOP(
        self, server: SMTP, session: Session, envelope: Envelope, argument: Any, /
    ) -> Awaitable[Answer]:
        """Return MISSING or a reply."""


class HandlesVRFY(Protocol):
    """Called at VRFY."""

    def handle_VRFY(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, /
    ) -> Awaitable[Answer]:
        """Return MISSING or a reply."""


class HandlesQUIT(Protocol):
    """Called at QUIT."""

    def handle_QUIT(
        self, server: SMTP, session: Session, envelope: Envelope, /
    ) -> Awaitable[Answer]:
        """Return MISSING or a reply."""


class HandlesException(Protocol):
    """Called when a hook or a command has raised an exception."""

    def handle_exception(self, error: Exception, /) -> Awaitable[str | bytes]:
        """Return the reply to the command."""


class ProcessesMessage(Protocol):
    """Called with every message, as in early versions of aiosmtpd; deprecated."""

    def process_message(
        self, peer: Any, mail_from: str, rcpt_tos: list[str], data: Any, /
    ) -> object:
        """Return None or a reply."""


Handler: TypeAlias = (
    HandlesAUTH
    | HandlesCONNECT
    | HandlesDATA
    | HandlesDISCONNECT
    | HandlesEHLO
    | HandlesException
    | HandlesHELO
    | HandlesMAIL
    | HandlesNOOP
    | HandlesPROXY
    | HandlesQUIT
    | HandlesRCPT
    | HandlesRSET
    | HandlesSTARTTLS
    | HandlesVRFY
    | ProcessesMessage
    | Chain
    | Filter
    | Route
    | Sink
    | AiosmtpdSink
)
"""A handler: an object with at least one hook, a sink or a filter, or a :class:`Route` of one."""
