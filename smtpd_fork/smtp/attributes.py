"""Attributes: the attributes of aiosmtpd's session object, for handlers and users' classes.

They are stored in the connection, in the dialogue, or in the values that all sessions share.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

import aiosmtpd.smtp

from smtpd_fork.dialogue.envelope import Envelope
from smtpd_fork.dialogue.session import Session
from smtpd_fork.dialogue.shared import SETTINGS
from smtpd_fork.smtp.status import attribute

if TYPE_CHECKING:
    import asyncio

    from smtpd_fork.peer_address import Peer
    from smtpd_fork.smtp.connection import Connection

__all__ = ["Attributes"]


def _settable(path: str, name: str) -> Any:
    """Return a property that reads and sets the attribute *name* of the object at *path*."""
    owner_of = attrgetter(path)

    def set_it(self: Attributes, value: Any) -> None:
        setattr(owner_of(self), name, value)

    return property(attrgetter(f"{path}.{name}"), set_it)


class Attributes(aiosmtpd.smtp.SMTP):
    """The attributes of a session."""

    connection: Connection
    """The connection of the session."""

    # -- settings; a session may change its own ----------------------------------------------------

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

    # -- the attributes of aiosmtpd ----------------------------------------------------------------

    session: aiosmtpd.smtp.Session | None = _settable("connection.dialogue", "session")
    envelope: aiosmtpd.smtp.Envelope | None = _settable("connection.dialogue", "envelope")
    transport: Any = _settable("connection", "transport")
    loop: asyncio.AbstractEventLoop = attribute("connection.loop")
    id: str = attribute("connection.id")
    peer: Peer = attribute("connection.peer")
    helo: str = attribute("connection.helo")
    messages: int = attribute("connection.messages")
    _handler_coroutine: Any = attribute("connection.ended")
    """A future that is done when the session has ended; a task in aiosmtpd."""

    @property
    def may_send_xclient(self) -> bool:
        """Whether the client may send XCLIENT."""
        return "XCLIENT" in self.connection.dialogue.may_send

    @property
    def speaks_for_others(self) -> bool:
        """Whether the client may send XCLIENT, and has not yet named another client with it."""
        named = getattr(self.session, "_named", False)
        return self.may_send_xclient and not named

    @property
    def may_send_xforward(self) -> bool:
        """Whether the client may send XFORWARD."""
        return "XFORWARD" in self.connection.dialogue.may_send

    @property
    def _tls_protocol(self) -> Any:  # type: ignore[override]  # read only
        """The TLS object of the connection; None without TLS."""
        dialogue = self.connection.dialogue
        return dialogue.session.ssl["ssl_object"] if dialogue.tls else None

    def __del__(self) -> None:
        """Replace asyncio's method, which reads attributes that are not set here."""

    def __repr__(self) -> str:
        return repr(self.connection)

    def _create_session(self) -> aiosmtpd.smtp.Session:
        return Session(self.loop, self.connection.id)

    def _create_envelope(self) -> aiosmtpd.smtp.Envelope:
        return Envelope()
