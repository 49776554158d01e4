"""Procedures: operations of a session that call several hooks, or code of users' classes."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any
from warnings import warn

from aiosmtpd.smtp import MISSING

from smtpd_fork.dialogue import replies
from smtpd_fork.dialogue.auth import reply_to_result
from smtpd_fork.dialogue.data import delivered
from smtpd_fork.dialogue.reply import answer_of, reply_bytes
from smtpd_fork.dialogue.session_commands import answer_or
from smtpd_fork.smtp.hooks import ask, checked, is_from_outside

if TYPE_CHECKING:
    from aiosmtpd.smtp import Session as AnySession

    from smtpd_fork.smtp.connection import Connection

DISCONNECT_SECONDS = 30.0
"""Time limit of handle_DISCONNECT, for whose answer no client waits."""

MAX_FAILURES = 3
"""Maximum of failed attempts in a session; Postfix and others allow a few as well."""


async def disconnect_hook(connection: Connection, session: AnySession | None = None) -> None:
    """Call handle_DISCONNECT; its time is limited, and its result has no effect.

    :param session: the session that has ended; default: that of the connection
    """
    dialogue = connection.dialogue
    try:
        async with asyncio.timeout(DISCONNECT_SECONDS):
            await connection.shared.hooks["DISCONNECT"](
                connection.server, session or dialogue.session
            )
    except BaseException as error:
        if is_from_outside(error, dialogue.id):
            raise
        dialogue.report_failure("handle_DISCONNECT failed", error)


async def subclass_command(connection: Connection, name: str, argument: str | None) -> None:
    """Carry out a command of a user's class."""
    server = connection.server
    server.answered = False
    try:
        await getattr(server, f"smtp_{name}")(argument)
    except BaseException as error:
        if not (server.answered or connection.dialogue.out) or connection.is_end(error):
            raise
        # The client would take a second reply for the one to its next command.
        connection.dialogue.report_failure(f"smtp_{name} failed after its reply", error)


async def ehlo_hooks(connection: Connection, name: str, lines: list[str]) -> None:
    """Reply to EHLO with the lines that handle_EHLO returns."""
    dialogue, shared = connection.dialogue, connection.shared
    session = dialogue.session
    if shared.ehlo_hook:
        _warn_of("handle_EHLO", "ehlo_hook")
        await connection.server.ehlo_hook()
    lines.append("250 HELP")
    answer: Any = MISSING
    if "EHLO" in shared.hooks:
        answer = await ask(connection, "EHLO", name, *([] if shared.ehlo_is_old else [lines]))
    if answer is MISSING:
        session.host_name = name
    elif shared.ehlo_is_old:
        lines[-1] = answer
    else:
        lines = answer
    if not isinstance(lines, (list, tuple)):
        raise TypeError(f"handle_EHLO must return the lines of a reply, not {lines!r:.200}")
    dialogue.put_status(answer_of("EHLO", "\n".join(lines)))


async def old_rset_hook(connection: Connection) -> None:
    """Call a user's ``rset_hook``, and then the handler's."""
    _warn_of("handle_RSET", "rset_hook")
    await connection.server.rset_hook()
    status = await ask(connection, "RSET")
    connection.dialogue.put(answer_or(connection.dialogue, replies.OK, status))


def _warn_of(hook: str, old: str) -> None:
    """Warn, in aiosmtpd's words, that a subclass has a deprecated hook."""
    warn(f"Use handler.{hook}() instead of .{old}()", DeprecationWarning, stacklevel=2)


async def process_message(connection: Connection) -> None:
    """Pass the message to a handler's deprecated ``process_message()``."""
    warn(
        "Use handler.handle_DATA() instead of .process_message()", DeprecationWarning, stacklevel=2
    )
    dialogue, shared = connection.dialogue, connection.shared
    session, envelope = dialogue.session, dialogue.envelope
    status = shared.handler.process_message(
        session.peer, envelope.mail_from, envelope.rcpt_tos, envelope.content
    )
    if inspect.isawaitable(status):
        status = await status
    if status is None or status is MISSING:
        status = "250 OK"
    dialogue.act(delivered(dialogue, checked(shared, "DATA", status)))


async def authenticate(connection: Connection, words: list[str]) -> None:
    """Authenticate the client with a mechanism.

    :param words: the mechanism, in capitals, and the initial response, if there is one
    """
    dialogue, shared = connection.dialogue, connection.shared
    session, server = dialogue.session, connection.server
    status = await ask(connection, "AUTH", words)
    if status is MISSING:
        attribute, own = shared.auth_names[words[0]]
        method = getattr(server if own else shared.handler, attribute)
        server.answered = False
        status = reply_to_result(session, await method(server, words))
        if server.answered:
            status = None  # the mechanism or challenge_auth() has sent the reply
        elif status is None:
            status = replies.INVALID_CREDENTIALS  # otherwise the client would wait for a reply
    if status is not None:
        dialogue.put(reply_bytes(status), by_handler=status != replies.INVALID_CREDENTIALS)
    if not session.authenticated:
        dialogue.auth_failures += 1
        if dialogue.auth_failures >= MAX_FAILURES:
            text = "Too many failed attempts to authenticate"
            dialogue.put(f"421 4.7.0 {shared.hostname} {text}\r\n".encode())
