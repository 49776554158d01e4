"""Hooks: what a handler may have, as protocols for type checkers.

A handler has any of these methods; none has to be derived from anything. ``server`` is the session
of the client (:class:`smtpd_fork.SMTP`). A hook is a coroutine function, or a function that returns
something to await; parameters may have any names. See docs/handlers.md for what they are for.
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
    """Is asked before the greeting."""

    def handle_CONNECT(self, server: SMTP, session: Session, /) -> Awaitable[Answer]:
        """Return MISSING to greet, or a reply of 4yz or 5yz to turn the client away."""


class HandlesDISCONNECT(Protocol):
    """Is called when the connection is gone."""

    def handle_DISCONNECT(self, server: SMTP, session: Session, /) -> Awaitable[object]:
        """Return whatever you like."""


class HandlesHELO(Protocol):
    """Is asked at HELO."""

    def handle_HELO(
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, /
    ) -> Awaitable[Answer]:
        """Set ``session.host_name`` and return a reply."""


class HandlesEHLO(Protocol):
    """Is asked at EHLO and LHLO."""

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
    """Is asked after the handshake of STARTTLS."""

    def handle_STARTTLS(
        self, server: SMTP, session: Session, envelope: Envelope, /
    ) -> bool | Awaitable[bool]:
        """Return whether the session may go on."""


class HandlesAUTH(Protocol):
    """Is asked at AUTH, before a mechanism is."""

    def handle_AUTH(
        self, server: SMTP, session: Session, envelope: Envelope, args: list[str], /
    ) -> Awaitable[Answer]:
        """Return MISSING to have the mechanism asked, or a reply."""


class HandlesPROXY(Protocol):
    """Is asked about a PROXY header."""

    def handle_PROXY(
        self, server: SMTP, session: Session, envelope: Envelope, proxy_data: ProxyData, /
    ) -> Awaitable[object]:
        """Return something true to accept it."""


class HandlesMAIL(Protocol):
    """Is asked at MAIL."""

    def handle_MAIL(
        self,
        server: SMTP,
        session: Session,
        envelope: Envelope,
        address: str,
        options: list[str],
        /,
    ) -> Awaitable[Answer]:
        """Return MISSING, or set ``envelope.mail_from`` and return a reply."""


class HandlesRCPT(Protocol):
    """Is asked at RCPT."""

    def handle_RCPT(
        self,
        server: SMTP,
        session: Session,
        envelope: Envelope,
        address: str,
        options: list[str],
        /,
    ) -> Awaitable[Answer]:
        """Return MISSING, or add to ``envelope.rcpt_tos`` and return a reply."""


class HandlesDATA(Protocol):
    """Is given every message."""

    def handle_DATA(
        self, server: SMTP, session: Session, envelope: Envelope, /
    ) -> Awaitable[Answer | Sequence[Answer]]:
        """Return a reply; in LMTP perhaps one for each recipient."""


class HandlesRSET(Protocol):
    """Is asked at RSET."""

    def handle_RSET(
        self, server: SMTP, session: Session, envelope: Envelope, /
    ) -> Awaitable[Answer]:
        """Return MISSING or a reply."""


class HandlesNOOP(Protocol):
    """Is asked at NOOP."""

    def handle_NOOP(
        self, server: SMTP, session: Session, envelope: Envelope, argument: Any, /
    ) -> Awaitable[Answer]:
        """Return MISSING or a reply."""


class HandlesVRFY(Protocol):
    """Is asked at VRFY."""

    def handle_VRFY(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, /
    ) -> Awaitable[Answer]:
        """Return MISSING or a reply."""


class HandlesQUIT(Protocol):
    """Is asked at QUIT."""

    def handle_QUIT(
        self, server: SMTP, session: Session, envelope: Envelope, /
    ) -> Awaitable[Answer]:
        """Return MISSING or a reply."""


class HandlesException(Protocol):
    """Is asked what to answer when something was raised."""

    def handle_exception(self, error: Exception, /) -> Awaitable[str | bytes]:
        """Return a reply."""


class ProcessesMessage(Protocol):
    """Is given every message, as in aiosmtpd's first years; deprecated."""

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
"""What has at least one hook, a sink or a filter, with a :class:`Route` around it or not."""
