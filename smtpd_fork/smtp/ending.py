"""Ending: the ways in which a session ends."""

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
"""How long a closing connection may take to deliver its last reply; then it is cut."""

HEAR_OUT_SECONDS = 2.0
"""How long a client that was interrupted is listened to; it should have noticed by then."""


def hang_up(connection: Connection) -> None:
    """Close, as the dialogue is over; a client that does not take the rest is cut a little later.

    A client that may be speaking is heard out: closed for writing only, and what still comes is
    forgotten until it has closed too. Closing at once while it speaks would be a reset, which takes
    the reply away from it.
    """
    dialogue, transport = connection.dialogue, connection.transport
    may_speak = dialogue.state == State.DISMISSED
    dialogue.state = State.CLOSING
    if transport is not None:
        now = connection.loop.time()
        if may_speak and not (connection.ended_input or dialogue.tls or transport.is_closing()):
            connection.deadline = now + HEAR_OUT_SECONDS
            connection.resume_reading()
            try:
                transport.write_eof()
            except OSError:
                transport.abort()  # the client has reset it, and asyncio has yet to notice
        else:
            connection.deadline = now + LINGER_SECONDS
            transport.close()
    if connection.work is None:
        tell_ended(connection)


def abort(connection: Connection) -> None:
    """Cut the connection; what is unsent is lost."""
    dialogue = connection.dialogue
    if dialogue.state < State.CLOSING:
        dialogue.forget_input()
        dialogue.state = State.CLOSING
    if connection.transport is not None:
        connection.transport.abort()


def cut(connection: Connection) -> None:
    """Cut the connection, and cancel whatever a handler has in hand."""
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
        cut(connection)  # the client does not speak SMTP yet
        return
    dialogue.report(logging.INFO, "timeout")
    text = "Timeout, closing connection"
    reply = reply_line(421, "4.4.2", dialogue.shared.hostname, text)
    _end(connection, reply, interrupting=False)


def make_room(connection: Connection, reply: bytes, reason: str) -> None:
    """Send *reply* and close: other clients need the resources of this idle one."""
    connection.dialogue.report(logging.INFO, "ended to free resources", reason)
    _end(connection, reply, interrupting=True)  # doing nothing may be to say NOOP


def _end(connection: Connection, reply: bytes, *, interrupting: bool) -> None:
    """Send *reply* in place of all that was to be sent, but for what waits in the tarpit; close."""
    dialogue = connection.dialogue
    if connection.held & DELAYED:  # it may be the reply to a message, which would come twice
        delays.let_go(connection)
        connection.flush()
    if dialogue.state < State.LEAVING:
        dialogue.out = reply
        dialogue.leave(interrupting=interrupting)
        connection.flush()
    if connection.work is not None:
        connection.work.cancel()


def end_for_memory(connection: Connection, held: int) -> bool:
    """End, as memory is short and this session holds *held* bytes of it without going on.

    :returns: False if that cannot be: a handler works for it
    """
    dialogue = connection.dialogue
    in_hand = dialogue.waiting is not None and dialogue.awaited is None
    if in_hand or dialogue.state >= State.LEAVING:
        return False
    text = "Insufficient system storage, closing connection"
    reply = reply_line(421, "4.3.1", dialogue.shared.hostname, text)
    make_room(connection, reply, f"memory is short, it was idle and held {held} bytes")
    return True


def shut_down(connection: Connection) -> None:
    """Send 421 and close: at once if the client is idle, else after the command in hand."""
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
        # Instead of the challenge's answer; a message in flight is finished.
        take_leave(connection, interrupting=False)
        waiter.cancel()
    elif connection.transport is not None and connection.waits:
        connection.go_on()


def kick(connection: Connection, reply: bytes) -> None:
    """Send *reply* and close, also in the middle of a message or to a client that does not read.

    What a handler has in hand is finished and answered first: a message that it takes is neither
    lost nor sent twice. It has its own time for that (``handler_timeout``).
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
        take_leave(connection)
    elif connection.work is not None and waits_for_client and dialogue.state < State.LEAVING:
        take_leave(connection)
        connection.work.cancel()
    else:
        shut_down(connection)


def take_leave(connection: Connection, *, interrupting: bool = True) -> None:
    """End what an administrator has ended; the client may be speaking."""
    dialogue = connection.dialogue
    if connection.transport is not None and dialogue.state < State.LEAVING:
        assert dialogue.last_reply is not None
        dialogue.out += dialogue.last_reply
        dialogue.leave(interrupting=interrupting)
        connection.flush()


def say_disconnected(connection: Connection) -> None:
    """Tell a handler that the session has ended, and let go of it."""
    if "DISCONNECT" in connection.dialogue.shared.hooks and connection.began:
        connection.start(Run("tell_disconnected"))
    else:
        let_go(connection)


def let_go(connection: Connection) -> None:
    """Keep nothing that may refer to this session: the connection is lost, and nothing runs.

    Python frees an ended session at once if nothing that it refers to refers back. Its garbage
    collector comes too late: a client can make sessions faster, each with a message.
    """
    dialogue = connection.dialogue
    connection.work = connection.hooks_context = dialogue.waiting = None
    dialogue.reset()
    if isinstance(dialogue.session, Session):
        dialogue.session._transport = None  # noqa: SLF001 - of this package
    dialogue.host = dialogue.facade = None
    tell_ended(connection)


def ended(connection: Connection) -> asyncio.Future[None]:
    """Return what is done when the session is."""
    if connection.end_told is None:
        connection.end_told = connection.loop.create_future()
        if connection.gone and connection.work is None:
            connection.end_told.set_result(None)
    return connection.end_told


def tell_ended(connection: Connection) -> None:
    """Complete the future of those that wait for the end."""
    if connection.end_told is not None and not connection.end_told.done():
        connection.end_told.set_result(None)
