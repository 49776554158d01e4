"""STARTTLS (RFC 3207), with the public API of the event loop."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any

from smtpd_fork.dialogue.commands import State
from smtpd_fork.errors import describe_error, forget_frames
from smtpd_fork.smtp.protocol_adapter import ProtocolAdapter, feed
from smtpd_fork.smtp.socket_transport import SocketTransport

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Coroutine

    from smtpd_fork.smtp.connection import Connection

__all__ = ["start_tls"]


async def start_tls(connection: Connection, early: bytes) -> None:
    """Begin TLS, and then the session again.

    :param early: the input after STARTTLS
    """
    connection.flush()
    connection.protocol.connection_made(await _handshake(connection, early))
    hook = connection.shared.hooks.get("STARTTLS")
    if hook is not None and not await _accepts(connection, hook):
        connection.dialogue.state = State.BARRED


async def _accepts(connection: Connection, hook: Callable[..., Any]) -> bool:
    """Return whether handle_STARTTLS accepts the handshake; an exception counts as False."""
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


async def _handshake(connection: Connection, early: bytes) -> asyncio.Transport:
    """Return the TLS transport; if the handshake fails, end the session."""
    loop, shared = connection.loop, connection.shared
    seconds = shared.limits.handshake_seconds
    if connection.owner is not None:
        seconds = connection.owner.stress.shorten(seconds)
    begun = loop.time()
    connection.deadline = begun + 2 * seconds  # the handshake has its own timeout
    reason, kind = "connection closed by the client", ""
    raw, transport = connection.transport, None
    assert shared.tls_context is not None
    try:
        early += await _give_to_loop(connection)
        raw, protocol = connection.transport, ProtocolAdapter(connection.protocol)
        starting = _start(loop, raw, protocol, shared.tls_context, seconds)
        transport = await (_with_early(loop, starting, raw, early) if early else starting)
    except (OSError, asyncio.CancelledError) as error:  # SSLError is an OSError
        if not isinstance(error, asyncio.CancelledError):
            reason, kind = describe_error(error), type(error).__name__
        forget_frames(error)
    if transport is not None and not transport.is_closing() and not connection.gone:
        return transport
    if loop.time() - begun > 0.9 * seconds:  # uvloop reports no timeout, and its clock is coarse
        reason, kind = f"it took longer than {seconds:g} seconds", "time"
    shared.tally.tls_failed += 1
    # The loop notifies its TLS layer of the loss, which does not notify this connection.
    connection.dialogue.report(logging.INFO, "TLS handshake failed", reason, kind=kind)
    raw.abort()
    connection.connection_lost(None)
    raise asyncio.CancelledError


class _Early(asyncio.Protocol):
    """Stores input until TLS is started, as the client need not wait for that."""

    def __init__(self) -> None:
        self.data = b""
        self.begun = False

    def begin(self) -> _Early:
        """Return this object; the socket belongs to the loop from now on."""
        self.begun = True
        return self

    def data_received(self, data: bytes) -> None:
        self.data += data


async def _give_to_loop(connection: Connection) -> bytes:
    """Change to a transport of the loop, which supports TLS only on its own transports.

    :returns: the input that was received meanwhile
    """
    if not isinstance(connection.transport, SocketTransport):
        return b""
    sock, unsent = connection.transport.detach()
    early = _Early()
    try:
        raw, _ = await connection.loop.connect_accepted_socket(early.begin, sock)
    finally:
        if not early.begun:
            sock.close()
    if connection.dialogue.state != State.HANDSHAKE:
        raw.abort()
        raise ConnectionResetError  # the session was ended meanwhile
    connection.transport = raw
    raw.write(unsent)
    return early.data


async def _start(
    loop: asyncio.AbstractEventLoop,
    raw: asyncio.Transport,
    protocol: asyncio.BufferedProtocol,
    context: ssl.SSLContext,
    seconds: float,
) -> asyncio.Transport | None:
    """Start TLS on an open transport.

    :raises ConnectionResetError: it is closed; asyncio's TLS layer would not notice that
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
    """Start TLS, and pass *early* to its layer before further input."""
    plain = raw.get_protocol()
    task = loop.create_task(starting)
    try:
        await asyncio.sleep(0)  # then the TLS layer is the transport's protocol
        layer = raw.get_protocol()
        if layer is not plain and not raw.is_closing():
            loop.call_soon(feed, layer, early)
        return await task
    except asyncio.CancelledError:
        # The loss of the connection cancels the session's task before it gets the error.
        error = task.exception() if task.done() and not task.cancelled() else None
        if error is not None:
            raise error from None
        raise
    finally:
        task.cancel()
