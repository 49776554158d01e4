"""Delays: replies that wait in the tarpit, and what ends that.

A session whose replies wait has a deadline and no task. What the client sends meanwhile is kept, up
to a limit (see :class:`~smtpd_fork.smtp.connection.Connection`), and not acted on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.dialogue.commands import State
from smtpd_fork.smtp.status import DELAYED, ENDED

if TYPE_CHECKING:
    from smtpd_fork.smtp.connection import Connection

__all__ = ["end", "give_up", "hold", "let_go", "release"]


def hold(connection: Connection) -> bool:
    """Have the replies that are to be sent wait, if this client is in the tarpit.

    The last words of a session do not wait: its connection slot is of use to others.

    :returns: whether they wait
    """
    dialogue = connection.dialogue
    if not dialogue.tarpit:
        return False
    if dialogue.last_reply is not None or dialogue.state >= State.LEAVING:
        let_go(connection)
        return False
    if connection.held & DELAYED:
        return True
    if not dialogue.out or not dialogue.shared.tarpit.has_room:
        return False
    if connection.held & ENDED:  # while a handler worked: see give_up()
        dialogue.leave()
        return False
    dialogue.shared.tarpit.waiting += 1
    connection.held |= DELAYED
    connection.deadline = connection.loop.time() + dialogue.tarpit
    return True


def release(connection: Connection) -> None:
    """Send the replies that wait, and go on."""
    let_go(connection)
    # The client may not read: then nothing below gives it a time.
    connection.deadline = connection.loop.time() + connection.shared.limits.command_seconds
    connection.flush()
    if not connection.blocked:
        connection.dialogue.advance()
    connection.go_on()


def end(connection: Connection) -> None:
    """Have the replies of a session wait no longer, if they do."""
    if connection.held & DELAYED:
        release(connection)


def give_up(connection: Connection) -> None:
    """End, as the client has closed while its replies wait: what else it has sent is not acted on.

    Most clients have gone then, and the slot is of use to others.
    """
    let_go(connection)
    connection.dialogue.leave()
    connection.flush()


def let_go(connection: Connection) -> None:
    """Have nothing wait any more; no error if nothing does."""
    if connection.held & DELAYED:
        connection.held &= ~DELAYED
        connection.dialogue.shared.tarpit.waiting -= 1
