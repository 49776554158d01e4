"""Delays: replies that are delayed by the tarpit.

A session with a delayed reply has a deadline, but no task. Input is stored meanwhile, up to a limit
(see :class:`~smtpd_fork.smtp.connection.Connection`), and not processed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.dialogue.commands import State
from smtpd_fork.smtp.status import DELAYED, ENDED

if TYPE_CHECKING:
    from smtpd_fork.smtp.connection import Connection

__all__ = ["delay", "end", "end_closed", "release", "stop"]


def delay(connection: Connection) -> bool:
    """Delay the pending replies if this client is in the tarpit.

    The last reply of a session is not delayed, so that its connection slot becomes free.

    :returns: whether they are delayed
    """
    dialogue = connection.dialogue
    if not dialogue.tarpit:
        return False
    if dialogue.last_reply is not None or dialogue.state >= State.LEAVING:
        stop(connection)
        return False
    if connection.held & DELAYED:
        return True
    if not dialogue.out or not dialogue.shared.tarpit.has_room:
        return False
    if connection.held & ENDED:  # during a hook: see end_closed()
        dialogue.leave()
        return False
    dialogue.shared.tarpit.waiting += 1
    connection.held |= DELAYED
    connection.deadline = connection.loop.time() + dialogue.tarpit
    return True


def release(connection: Connection) -> None:
    """Send the delayed replies, and continue."""
    stop(connection)
    # If the client does not read, the calls below set no deadline.
    connection.deadline = connection.loop.time() + connection.shared.limits.command_seconds
    connection.flush()
    if not connection.blocked:
        connection.dialogue.advance()
    connection.proceed()


def end(connection: Connection) -> None:
    """Send the replies of a session now if they are delayed."""
    if connection.held & DELAYED:
        release(connection)


def end_closed(connection: Connection) -> None:
    """End the session, as the client has closed; its further input is not processed.

    Most such clients have gone, and the connection slot becomes free.
    """
    stop(connection)
    connection.dialogue.leave()
    connection.flush()


def stop(connection: Connection) -> None:
    """End the delay of replies, if there is one."""
    if connection.held & DELAYED:
        connection.held &= ~DELAYED
        connection.dialogue.shared.tarpit.waiting -= 1
