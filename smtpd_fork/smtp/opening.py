"""Opening: how a session begins: whoever has to be asked is asked, and the client is greeted."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from smtpd_fork.dialogue.session import Session
from smtpd_fork.dialogue.waiting import Run
from smtpd_fork.net import plain_peer

if TYPE_CHECKING:
    from smtpd_fork.smtp.connection import Connection

__all__ = ["begin"]

log = logging.getLogger("smtpd_fork.session")

_TLS_FACTS = ("sslcontext", "ssl_object", "peercert", "cipher", "compression")


def begin(connection: Connection, transport: asyncio.BaseTransport) -> None:
    """Begin the session; under TLS after STARTTLS begin anew."""
    again = connection.began
    connection.transport = transport
    _new_session(connection)
    if again or transport.get_extra_info("sslcontext") is not None:
        _use_tls(connection)  # from the first byte: STARTTLS is not offered
    if again:
        return
    limits = connection.dialogue.shared.limits
    now = connection.loop.time()
    if limits.session_seconds:
        connection.ends_at = now + limits.session_seconds
    connection.sweep.watch(connection)
    connection.idle_since = now
    connection.deadline = min(connection.ends_at, now + limits.command_seconds)
    _open(connection)
    connection.go_on()


def _open(connection: Connection) -> None:
    """Greet, once whoever has to be asked has been."""
    dialogue, shared = connection.dialogue, connection.dialogue.shared
    if dialogue.farewell is not None:
        dialogue.advance()
    elif shared.proxy_seconds is not None:
        connection.proxy_reader = asyncio.StreamReader(loop=connection.loop)
        # It pauses the transport by itself: what comes behind a header is bounded.
        connection.proxy_reader.set_transport(connection.transport)
        dialogue.waiting = Run("read_proxy_header", (shared.proxy_seconds,))
    elif connection.proxied is not None and "PROXY" in shared.hooks:
        dialogue.waiting = Run("judge_proxy_header")
    elif "CONNECT" in shared.hooks:
        dialogue.waiting = Run("greet")
    else:
        dialogue.greet()


def _new_session(connection: Connection) -> None:
    dialogue, before = connection.dialogue, connection.dialogue.session
    shared = dialogue.shared
    if connection.peer is None:
        connection.peer = connection.transport.get_extra_info("peername")
    own = shared.own_session
    session = connection.server._create_session() if own else Session(connection.loop, dialogue.id)  # noqa: SLF001 - aiosmtpd's name
    session.peer = plain_peer(connection.peer)
    session.proxy_data = before.proxy_data if before is not None else connection.proxied
    if isinstance(session, Session):
        session._transport = connection.transport  # noqa: SLF001 - of this package
        session.lmtp = shared.lmtp
        if connection.host_name_dns is not None:
            session.host_name_dns = connection.host_name_dns
    dialogue.begin(session)
    if dialogue.debug:  # who() costs, and mostly for nobody
        who = dialogue.who()
        log.debug("[%s] connected: %s", dialogue.id, who["client"], extra=who)


def _use_tls(connection: Connection) -> None:
    dialogue = connection.dialogue
    dialogue.shared.tally.tls_done += 1
    if connection.handshakes is not None:
        connection.handshakes.end_handshake(connection)
    fact = connection.transport.get_extra_info
    dialogue.session.ssl = {name: fact(name) for name in _TLS_FACTS}
    dialogue.set_rows()
