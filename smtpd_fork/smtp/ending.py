"""Ending: all ways in which a session ends."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from smtpd_fork.dialogue.commands import State
from smtpd_fork.dialogue.session import Session
from smtpd_fork.dialogue.waiting import Run
from smtpd_fork.gate.verdict import reply_line, shutdown_reply
from smtpd_fork.smtp import delays
from smtpd_fork.smtp.status import DELAYED

if TYPE_CHECKING:
    import asyncio

    from smtpd_fork.smtp.connection import Connection

__all__ = ["LINGER_SECONDS"]

LINGER_SECONDS = 5.0
"""Time for a closing connection to send its last reply, before it is aborted."""

HALF_CLOSED_SECONDS = 2.0
"""Time during which input of an interrupted client is read and dropped."""


def close(connection: Connection) -> None:
    """Close the connection, as the dialogue has ended; abort it later if the client does not close.

    If the client may still be sending, the connection is closed for writing only, and input is
    dropped until the client has closed as well. Closing it at once would send a reset, and the
    client would lose the reply.
    """
    dialogue, transport = connection.dialogue, connection.transport
    may_speak = dialogue.state == State.DISMISSED
    dialogue.state = State.CLOSING
    if transport is not None:
        now = connection.loop.time()
        if may_speak and not (connection.ended_input or dialogue.tls or transport.is_closing()):
            connection.deadline = now + HALF_CLOSED_SECONDS
            connection.resume_reading()
            try:
                transport.write_eof()
            except OSError:
                transport.abort()  # the client has reset it, which asyncio has not noticed yet
        else:
            connection.deadline = now + LINGER_SECONDS
            transport.close()
    if connection.work is None:
        complete_end(connection)


def abort(connection: Connection) -> None:
    """Abort the connection; unsent data is lost."""
    dialogue = connection.dialogue
    if dialogue.state < State.CLOSING:
        dialogue.forget_input()
        dialogue.state = State.CLOSING
    if connection.transport is not None:
        connection.transport.abort()


def cut(connection: Connection) -> None:
    """Abort the connection, and cancel a running handler."""
    if connection.dialogue.handler_busy:
        connection.shared.tally.aborted += 1
        connection.dialogue.handler_busy = False
    abort(connection)
    if connection.work is not None:
        connection.work.cancel()


def time_out(connection: Connection) -> None:
    """Send 421 for a timeout, and close."""
    dialogue = connection.dialogue
    if connection.proxy_reader is not None:
        dialogue.report(logging.INFO, "PROXY header refused", "it took too long")
        cut(connection)  # SMTP has not begun, so there is no reply
        return
    dialogue.report(logging.INFO, "timeout")
    text = "Timeout, closing connection"
    reply = reply_line(421, "4.4.2", dialogue.shared.hostname, text)
    _end(connection, reply, interrupting=False)


def end_for_resources(connection: Connection, reply: bytes, reason: str) -> None:
    """Send *reply* and close an idle session, to free resources for other clients."""
    connection.dialogue.report(logging.INFO, "ended to free resources", reason)
    _end(connection, reply, interrupting=True)  # an idle client may be sending NOOP


def _end(connection: Connection, reply: bytes, *, interrupting: bool) -> None:
    """Replace pending replies, except delayed ones, by *reply*, and close."""
    dialogue = connection.dialogue
    if connection.held & DELAYED:  # without the reply to a message, the client would send it again
        delays.stop(connection)
        connection.flush()
    if dialogue.state < State.LEAVING:
        dialogue.out = reply
        dialogue.leave(interrupting=interrupting)
        connection.flush()
    if connection.work is not None:
        connection.work.cancel()


def end_for_memory(connection: Connection, held: int) -> bool:
    """End the session to free memory, as it holds *held* bytes and makes no progress.

    :returns: False if a handler is processing its message
    """
    dialogue = connection.dialogue
    busy = dialogue.waiting is not None and dialogue.awaited is None
    if busy or dialogue.state >= State.LEAVING:
        return False
    text = "Insufficient system storage, closing connection"
    reply = reply_line(421, "4.3.1", dialogue.shared.hostname, text)
    end_for_resources(connection, reply, f"memory is low, it was idle and held {held} bytes")
    return True


def shut_down(connection: Connection) -> None:
    """Send 421 and close: at once if the client is idle, or after the current command."""
    dialogue = connection.dialogue
    if dialogue.last_reply is None:
        dialogue.last_reply = shutdown_reply(dialogue.shared.hostname)
    if dialogue.state == State.HANDSHAKE:
        abort(connection)
        return
    if connection.held & DELAYED:
        delays.release(connection)
        return
    waiter = dialogue.awaited
    if waiter is not None and not waiter.done() and dialogue.reading is None:
        # A pending challenge of AUTH is interrupted; a message is received to its end.
        send_last_reply(connection, interrupting=False)
        waiter.cancel()
    elif connection.transport is not None and connection.waits:
        connection.proceed()


def kick(connection: Connection, reply: bytes) -> None:
    """Send *reply* and close, also during a message, or if the client does not read.

    A running handler finishes first, and its reply is sent, so that a message that it accepts is
    neither lost nor sent again. Its time is limited (``handler_timeout``).
    """
    dialogue = connection.dialogue
    connection.kicked = True
    dialogue.last_reply = reply
    if connection.held & DELAYED:
        delays.release(connection)
    waits_for_client = (
        (connection.blocked or dialogue.reading is not None)
        and not dialogue.handler_busy
        and dialogue.state != State.HANDSHAKE
    )
    if connection.waits:
        send_last_reply(connection)
    elif connection.work is not None and waits_for_client and dialogue.state < State.LEAVING:
        send_last_reply(connection)
        connection.work.cancel()
    else:
        shut_down(connection)


def send_last_reply(connection: Connection, *, interrupting: bool = True) -> None:
    """Send the last reply of a session that an administrator ended; the client may be sending."""
    dialogue = connection.dialogue
    if connection.transport is not None and dialogue.state < State.LEAVING:
        assert dialogue.last_reply is not None
        dialogue.out += dialogue.last_reply
        dialogue.leave(interrupting=interrupting)
        connection.flush()


def end_after_hook(connection: Connection) -> None:
    """Call handle_DISCONNECT, if there is one, and release the session."""
    if "DISCONNECT" in connection.dialogue.shared.hooks and connection.began:
        connection.start(Run("disconnect_hook"))
    else:
        release(connection)


def release(connection: Connection) -> None:
    """Remove all references to the session, as the connection is lost and no task runs.

    Without reference cycles, Python frees an ended session at once. The garbage collector would be
    too slow, as a client can create sessions, each with a message, faster than it runs.
    """
    dialogue = connection.dialogue
    connection.work = connection.hooks_context = dialogue.waiting = None
    dialogue.reset()
    if isinstance(dialogue.session, Session):
        dialogue.session._transport = None  # noqa: SLF001 - a class of this package
    dialogue.host = dialogue.facade = None
    complete_end(connection)


def ended(connection: Connection) -> asyncio.Future[None]:
    """Return a future that is done when the session has ended."""
    if connection.end_future is None:
        connection.end_future = connection.loop.create_future()
        if connection.gone and connection.work is None:
            connection.end_future.set_result(None)
    return connection.end_future


def complete_end(connection: Connection) -> None:
    """Complete the future of :func:`ended`."""
    if connection.end_future is not None and not connection.end_future.done():
        connection.end_future.set_result(None)
