"""XCLIENT: replaces the client of a session by the one that a trusted host names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.dialogue import memory
from smtpd_fork.dialogue.client_log import log_debug
from smtpd_fork.dialogue.session import Session
from smtpd_fork.dialogue.tarpit import slow_down
from smtpd_fork.peer_address import describe, host_of
from smtpd_fork.smtp import opening, procedures

if TYPE_CHECKING:
    from typing import Any

    from smtpd_fork.dialogue.client_attributes import Attributes
    from smtpd_fork.peer_address import Peer
    from smtpd_fork.smtp.connection import Connection

__all__ = ["change_client"]

LOGIN_MECHANISM = "XCLIENT"
"""The mechanism of a client whose login is set by XCLIENT; Postfix uses the same name."""


async def change_client(connection: Connection, attributes: Attributes) -> None:
    """Begin the session again for the client of *attributes*, unless that client is refused."""
    dialogue, sender, before = connection.dialogue, connection.peer, connection.dialogue.session
    peer, name = _peer(attributes, sender), connection.host_name_dns
    connection.host_name_dns = None
    if connection.owner is not None:
        look_up = "NAME" not in attributes
        refusal = await connection.owner.identify(connection, peer, look_up=look_up)
        if refusal is not None:
            dialogue.out += (reply := refusal.reply(dialogue.shared.hostname))
            dialogue.row.replies[reply[0]] += 1
            dialogue.leave(interrupting=True)
            return
    if "NAME" in attributes:
        connection.host_name_dns = attributes["NAME"]
    elif "ADDR" not in attributes:
        connection.host_name_dns = name
    _replace(connection, peer, attributes)
    log_debug(dialogue, f"named by {describe(sender)} (XCLIENT)")
    if "DISCONNECT" in connection.shared.hooks:
        await procedures.disconnect_hook(connection, before)
    if not connection.gone:
        await opening.greet(connection)


def _peer(attributes: Attributes, before: Peer) -> Peer:
    """Return the address of the client; an unknown address is "", as for unix sockets.

    Without PORT the port is 0, as the trusted host's own port is not the client's.
    """
    if "ADDR" not in attributes and "PORT" not in attributes:
        return before
    host = attributes["ADDR"] if "ADDR" in attributes else host_of(before)
    return (host, int(attributes.get("PORT") or 0)) if host else ""


def _replace(connection: Connection, peer: Peer, attributes: Attributes) -> None:
    """Replace the client, and return the session to its state after the greeting."""
    dialogue = connection.dialogue
    ssl = dialogue.session.ssl
    dialogue.reset()
    dialogue.shared.budget.hold(connection, 0)  # further memory is charged to the new client
    dialogue.charged = 0
    connection.peer = peer
    slow_down(dialogue, 0.0, "")
    opening.begin_again(connection, ssl)
    if connection.owner is not None:
        connection.owner.mark(connection)
    memory.charge(dialogue)
    dialogue.errors = dialogue.rejects = dialogue.noops = dialogue.overshoot = 0
    dialogue.auth_failures, dialogue.calls = 0, None
    connection.steps = (-1, 0)
    _introduce(dialogue.session, attributes)


def _introduce(session: Any, attributes: Attributes) -> None:
    """Store the attributes of the client besides its address."""
    session.host_name = attributes.get("HELO")
    session.extended_smtp = attributes.get("PROTO") == "ESMTP"
    if login := attributes.get("LOGIN"):
        session.authenticated = True
        session.auth_data = session._login_data = login  # noqa: SLF001 - its setter warns
    if isinstance(session, Session):
        session._named = True  # noqa: SLF001 - a class of this package
        session.auth_mechanism = LOGIN_MECHANISM if login else ""
        if destination := attributes.get("DESTADDR"):
            session._destination = (destination, int(attributes.get("DESTPORT") or 0))  # noqa: SLF001 - a class of this package
