"""Attributes: what handlers and users' classes find on a session, where aiosmtpd has it.

Nothing of it is kept here: it is the connection's, the dialogue's, or shared by all sessions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiosmtpd.smtp

from smtpd_fork.dialogue.envelope import Envelope
from smtpd_fork.dialogue.session import Session
from smtpd_fork.dialogue.shared import SETTINGS

if TYPE_CHECKING:
    import asyncio

    from smtpd_fork.net import Peer
    from smtpd_fork.smtp.connection import Connection

__all__ = ["Attributes"]


class Attributes(aiosmtpd.smtp.SMTP):
    """A session, as far as its attributes go."""

    connection: Connection

    # -- settings, which a session may change for itself -------------------------------------------

    def __getattr__(self, name: str) -> Any:
        setting = SETTINGS.get(name)
        if setting is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.connection.shared, setting)

    def __setattr__(self, name: str, value: Any) -> None:
        setting = SETTINGS.get(name)
        if setting is not None:
            dialogue = self.connection.dialogue
            dialogue.shared = dialogue.shared.changed(setting, value)
            dialogue.set_rows()
        super().__setattr__(name, value)

    # -- what aiosmtpd has as attributes -----------------------------------------------------------

    @property
    def session(self) -> aiosmtpd.smtp.Session | None:
        """What is known of the client."""
        return self.connection.dialogue.session

    @session.setter
    def session(self, session: aiosmtpd.smtp.Session | None) -> None:
        self.connection.dialogue.session = session

    @property
    def envelope(self) -> aiosmtpd.smtp.Envelope | None:
        """The mail transaction."""
        envelope: aiosmtpd.smtp.Envelope | None = self.connection.dialogue.envelope
        return envelope

    @envelope.setter
    def envelope(self, envelope: aiosmtpd.smtp.Envelope | None) -> None:
        self.connection.dialogue.envelope = envelope

    @property
    def transport(self) -> Any:
        """The loop's transport; None before and after the connection."""
        return self.connection.transport

    @transport.setter
    def transport(self, transport: Any) -> None:
        self.connection.transport = transport

    @property
    def loop(self) -> asyncio.AbstractEventLoop:  # type: ignore[override]  # nobody sets it
        """The session's own."""
        return self.connection.loop

    @property
    def id(self) -> str:
        """Names the session in the logs, in ``Received:`` and in the reply to DATA."""
        return self.connection.id

    @property
    def peer(self) -> Peer:
        """The client, as accept(2) or a PROXY header named it."""
        return self.connection.peer

    @property
    def helo(self) -> str:
        """The name that the client gave itself, as it came; empty if it gave none."""
        return self.connection.helo

    @property
    def messages(self) -> int:
        """Messages that were accepted so far."""
        return self.connection.messages

    @property
    def _tls_protocol(self) -> Any:  # type: ignore[override]  # as above
        """What users ask to know whether TLS is spoken."""
        dialogue = self.connection.dialogue
        return dialogue.session.ssl["ssl_object"] if dialogue.tls else None  # type: ignore[union-attr, index]  # there is, with TLS

    @property
    def _handler_coroutine(self) -> asyncio.Future[None]:  # type: ignore[override]  # as above
        """What aiosmtpd has a task for: is done when the session is."""
        return self.connection.ended

    def __del__(self) -> None:
        """Do not look for what asyncio's class, which is not initialized here, would look for."""

    def __repr__(self) -> str:
        return repr(self.connection)

    def _create_session(self) -> aiosmtpd.smtp.Session:
        return Session(self.loop, self.connection.id)

    def _create_envelope(self) -> aiosmtpd.smtp.Envelope:
        return Envelope()
