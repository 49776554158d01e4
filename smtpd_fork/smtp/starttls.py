"""STARTTLS (RFC 3207), by the loop's public API."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any, cast

from smtpd_fork.dialogue.commands import State
from smtpd_fork.errors import forget_frames

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Coroutine

    from smtpd_fork.smtp.connection import Connection

__all__ = ["start_tls"]


async def start_tls(connection: Connection, early: bytes) -> None:
    """Begin TLS, and the session anew.

    :param early: what has been read behind STARTTLS
    """
    connection.flush()
    raw = cast("asyncio.Transport", connection.transport)
    transport = await _handshake(connection, raw, early)
    told = connection.server if connection.observed else connection
    told.connection_made(transport)
    hook = connection.shared.hooks.get("STARTTLS")
    if hook is not None and not await _accepts(connection, hook):
        connection.dialogue.state = State.BARRED


async def _accepts(connection: Connection, hook: Callable[..., Any]) -> bool:
    """Return whether a handler accepts the handshake; no reply is owed, whatever it does."""
    dialogue = connection.dialogue
    try:
        accepted = hook(connection.server, dialogue.session, dialogue.envelope)
        if inspect.isawaitable(accepted):
            accepted = await accepted
    except BaseException as error:
        if connection.is_end(error):
            raise
        dialogue.report_failure("handle_STARTTLS failed", error)
        return False
    return bool(accepted)


async def _handshake(
    connection: Connection, raw: asyncio.Transport, early: bytes
) -> asyncio.Transport:
    """Return the TLS transport; if there is none in the end, the session is over."""
    loop, shared = connection.loop, connection.shared
    seconds = shared.limits.handshake_seconds
    if connection.handshakes is not None:
        seconds = connection.handshakes.shorten(seconds)
    connection.deadline = loop.time() + 2 * seconds  # the handshake has a time of its own
    reason = "connection closed"
    transport = None
    assert shared.tls_context is not None
    starting = _start(loop, raw, connection.protocol(tls=True), shared.tls_context, seconds)
    try:
        transport = await (_with_early(loop, starting, raw, early) if early else starting)
    except (OSError, asyncio.CancelledError) as error:  # SSLError is an OSError
        reason = str(error) or reason
        forget_frames(error)
    if transport is not None and not transport.is_closing() and not connection.gone:
        return transport
    shared.tally.tls_failed += 1
    # The loop tells its TLS layer of the loss, and that does not tell us.
    connection.dialogue.report(logging.INFO, "TLS handshake failed", reason)
    raw.abort()
    connection.connection_lost(None)
    raise asyncio.CancelledError


async def _start(
    loop: asyncio.AbstractEventLoop,
    raw: asyncio.Transport,
    protocol: asyncio.BufferedProtocol,
    context: ssl.SSLContext,
    seconds: float,
) -> asyncio.Transport | None:
    """Have the loop speak TLS on a transport that is open.

    :raises ConnectionResetError: it is not; asyncio's TLS layer would never hear that it is closed
    """
    if raw.is_closing():
        raise ConnectionResetError
    return await loop.start_tls(
        raw, protocol, context, server_side=True, ssl_handshake_timeout=seconds
    )


async def _with_early(
    loop: asyncio.AbstractEventLoop,
    starting: Coroutine[Any, Any, asyncio.Transport | None],
    raw: asyncio.Transport,
    early: bytes,
) -> asyncio.Transport | None:
    """Start TLS, and have its layer receive *early* before what the socket has."""
    plain = raw.get_protocol()
    task = loop.create_task(starting)
    try:
        await asyncio.sleep(0)  # now the layer is the transport's protocol, and is told so next
        layer = raw.get_protocol()
        if layer is not plain:
            loop.call_soon(_receive, layer, early)
        return await task
    finally:
        task.cancel()


def _receive(protocol: Any, data: bytes) -> None:
    """Give *data* to an asyncio.BufferedProtocol (which uvloop's TLS layer is in all but name)."""
    rest = memoryview(data)
    while rest:
        buffer = protocol.get_buffer(len(rest))
        count = min(len(buffer), len(rest))
        buffer[:count] = rest[:count]
        protocol.buffer_updated(count)
        rest = rest[count:]
