"""Attributes: what handlers and users' classes find on a session, where aiosmtpd has it.

Nothing of it is kept here: it is the connection's, the dialogue's, or shared by all sessions.
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
    """Return a property that is an attribute of something else, and is set there."""
    owner_of = attrgetter(path)

    def set_it(self: Attributes, value: Any) -> None:
        setattr(owner_of(self), name, value)

    return property(attrgetter(f"{path}.{name}"), set_it)


class Attributes(aiosmtpd.smtp.SMTP):
    """A session, as far as its attributes go."""

    connection: Connection
    """The client's."""

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

    session: aiosmtpd.smtp.Session | None = _settable("connection.dialogue", "session")
    envelope: aiosmtpd.smtp.Envelope | None = _settable("connection.dialogue", "envelope")
    transport: Any = _settable("connection", "transport")
    loop: asyncio.AbstractEventLoop = attribute("connection.loop")
    id: str = attribute("connection.id")
    peer: Peer = attribute("connection.peer")
    helo: str = attribute("connection.helo")
    messages: int = attribute("connection.messages")
    _handler_coroutine: Any = attribute("connection.ended")
    """What aiosmtpd has a task for: is done when the session is."""

    @property
    def may_send_xclient(self) -> bool:
        """Whether the client may send XCLIENT."""
        return "XCLIENT" in self.connection.dialogue.may_send

    @property
    def speaks_for_others(self) -> bool:
        """Whether the client is a host that names its clients, and has not done so yet."""
        named = getattr(self.session, "_named", False)
        return self.may_send_xclient and not named

    @property
    def may_send_xforward(self) -> bool:
        """Whether the client may send XFORWARD."""
        return "XFORWARD" in self.connection.dialogue.may_send

    @property
    def _tls_protocol(self) -> Any:  # type: ignore[override]  # nobody sets it
        """The TLS object of the connection; None without TLS."""
        dialogue = self.connection.dialogue
        return dialogue.session.ssl["ssl_object"] if dialogue.tls else None

    def __del__(self) -> None:
        """Do not look for what asyncio's class, which is not initialized here, would look for."""

    def __repr__(self) -> str:
        return repr(self.connection)

    def _create_session(self) -> aiosmtpd.smtp.Session:
        return Session(self.loop, self.connection.id)

    def _create_envelope(self) -> aiosmtpd.smtp.Envelope:
        return Envelope()
