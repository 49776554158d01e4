"""Opening: begins a session with an optional PROXY header, hooks, and the greeting."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from aiosmtpd.proxy_protocol import get_proxy
from aiosmtpd.smtp import MISSING

from smtpd_fork.dialogue import replies
from smtpd_fork.dialogue.client_log import log_debug
from smtpd_fork.dialogue.notes import keep_notes
from smtpd_fork.dialogue.rejections import note_rejection
from smtpd_fork.dialogue.reply import answer_of, reply_bytes
from smtpd_fork.dialogue.session import Session
from smtpd_fork.dialogue.trusted_commands import trusted_commands
from smtpd_fork.dialogue.waiting import Run
from smtpd_fork.peer_address import plain_peer
from smtpd_fork.sanitizer import printable
from smtpd_fork.smtp.deadlines import wait_for_next
from smtpd_fork.smtp.hooks import ask

if TYPE_CHECKING:
    from smtpd_fork.smtp.connection import Connection

__all__ = [
    "begin",
    "begin_again",
    "check_proxy_header",
    "check_proxy_timeout",
    "greet",
    "read_proxy_header",
]  # fmt: skip

log = logging.getLogger("smtpd_fork.session")

_TLS_INFO = ("sslcontext", "ssl_object", "peercert", "cipher", "compression")

SHORTEST_SENSIBLE = 3.0
"""Seconds; aiosmtpd warns of a shorter timeout."""


def begin(connection: Connection, transport: asyncio.BaseTransport) -> None:
    """Begin the session; after STARTTLS, begin it again."""
    again = connection.began
    connection.transport = transport
    _new_session(connection)
    if again or transport.get_extra_info("sslcontext") is not None:
        _use_tls(connection)  # with implicit TLS, STARTTLS is not offered
    if again:
        return
    limits = connection.dialogue.shared.limits
    if limits.session_seconds:
        connection.ends_at = connection.loop.time() + limits.session_seconds
    dialogue = connection.dialogue
    if dialogue.shared.trusted:
        peer = plain_peer(connection.peer)
        dialogue.may_send = trusted_commands(dialogue.shared.trusted, peer)
    connection.sweep.watch(connection)
    wait_for_next(connection)
    _open(connection)
    if connection.dialogue.waiting is None and not connection.dialogue.tarpit:
        connection.flush()
    else:
        connection.proceed()


def _open(connection: Connection) -> None:
    """Send the greeting, or call the hooks that precede it."""
    dialogue, shared = connection.dialogue, connection.dialogue.shared
    if dialogue.last_reply is not None:
        dialogue.advance()
    elif shared.proxy_seconds is not None:
        connection.proxy_reader = asyncio.StreamReader(loop=connection.loop)
        # The reader pauses the transport, so that input after a header is limited.
        connection.proxy_reader.set_transport(connection.transport)
        dialogue.waiting = Run("read_proxy_header", (shared.proxy_seconds,))
    elif connection.proxied is not None and "PROXY" in shared.hooks:
        dialogue.waiting = Run("check_proxy_header")
    elif "CONNECT" in shared.hooks:
        dialogue.waiting = Run("greet")
    else:
        dialogue.greet()


def begin_again(connection: Connection, ssl: Any) -> None:
    """Begin the session of another client on the same connection.

    :param ssl: data of TLS, None without it
    """
    _new_session(connection, keeps_notes=False)
    connection.dialogue.session.ssl = ssl


def _new_session(connection: Connection, *, keeps_notes: bool = True) -> None:
    dialogue, before = connection.dialogue, connection.dialogue.session
    shared = dialogue.shared
    if connection.peer is None:
        connection.peer = connection.transport.get_extra_info("peername")
    own = shared.overrides_session
    session = connection.server._create_session() if own else Session(connection.loop, dialogue.id)  # noqa: SLF001 - aiosmtpd's name
    session.peer = plain_peer(connection.peer)
    session.proxy_data = before.proxy_data if before is not None else connection.proxied
    if before is not None and keeps_notes:
        keep_notes(before, session)
    if isinstance(session, Session):
        session._transport = connection.transport  # noqa: SLF001 - a class of this package
        session.lmtp = shared.lmtp
        if connection.host_name_dns is not None:
            session.host_name_dns = connection.host_name_dns
        if keeps_notes and isinstance(before, Session):
            session._destination, session._named = before._destination, before._named  # noqa: SLF001 - a class of this package
    if dialogue.tarpit:
        session.tarpit = dialogue.tarpit
    dialogue.begin(session)
    if dialogue.debug:  # log_fields() is slow
        log_debug(dialogue, "connected")


def _use_tls(connection: Connection) -> None:
    dialogue = connection.dialogue
    dialogue.shared.tally.tls_done += 1
    if connection.owner is not None:
        connection.owner.end_handshake(connection)
    info = connection.transport.get_extra_info
    dialogue.session.ssl = {name: info(name) for name in _TLS_INFO}
    dialogue.set_rows()


async def greet(connection: Connection) -> None:
    """Call handle_CONNECT, and send the greeting or a rejection."""
    dialogue = connection.dialogue
    hook = connection.shared.hooks.get("CONNECT")
    if hook is None:
        dialogue.greet()
        return
    try:
        status = answer_of("CONNECT", await hook(connection.server, dialogue.session))
    except BaseException as error:
        if connection.is_end(error):
            raise
        dialogue.report_failure("handle_CONNECT failed", error)
        status = replies.NOT_NOW
    if status is MISSING or status.startswith("2"):
        dialogue.greet()
    else:
        by_handler = status != replies.NOT_NOW
        dialogue.out += note_rejection(dialogue, reply_bytes(status), by_handler=by_handler)
        dialogue.leave()  # input so far was stored, so closing causes no reset


# -- a PROXY header before the greeting, with aiosmtpd's proxy_protocol_timeout --------------------


def check_proxy_timeout(seconds: float | None) -> None:
    """Check aiosmtpd's keyword ``proxy_protocol_timeout``.

    :raises ValueError: it is not above 0
    """
    if seconds is not None and seconds <= 0:
        raise ValueError("proxy_protocol_timeout must be > 0")
    if seconds is not None and seconds < SHORTEST_SENSIBLE:
        log.warning("proxy_protocol_timeout < 3.0")


async def check_proxy_header(connection: Connection) -> None:
    """Call handle_PROXY with the header that was read before the session; then greet."""
    if await _is_accepted(connection, connection.proxied):
        await greet(connection)
    else:
        _refuse(connection, "by handle_PROXY")


async def read_proxy_header(connection: Connection, seconds: float) -> None:
    """Read a PROXY header, call handle_PROXY, and greet."""
    session = connection.dialogue.session
    connection.deadline = connection.loop.time() + seconds
    reader = connection.proxy_reader
    assert reader is not None
    session.proxy_data = await get_proxy(reader)
    accepted = session.proxy_data and await _is_accepted(connection, session.proxy_data)
    connection.proxy_reader = None
    if accepted is MISSING or not accepted:
        error = getattr(session.proxy_data, "error", "")
        _refuse(connection, printable(str(error), 200) if error else "by handle_PROXY")
        return
    connection.transport.resume_reading()  # the reader may have paused it
    connection.dialogue.keep(bytes(reader._buffer))  # type: ignore[attr-defined]  # noqa: SLF001 - the input after the header
    await greet(connection)


async def _is_accepted(connection: Connection, proxy_data: Any) -> Any:
    """Return the answer of handle_PROXY; an exception counts as False."""
    try:
        return await ask(connection, "PROXY", proxy_data)
    except Exception as error:  # noqa: BLE001 - a handler may raise anything
        connection.dialogue.report_failure("handle_PROXY failed", error)
        reply = reply_bytes(replies.NOT_NOW)
        connection.dialogue.out += note_rejection(connection.dialogue, reply, by_handler=False)
        return False


def _refuse(connection: Connection, reason: str) -> None:
    connection.dialogue.report(logging.INFO, "PROXY header refused", reason)
    connection.dialogue.leave()
