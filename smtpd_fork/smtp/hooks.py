"""Hooks: call a handler's hooks, check the results, and handle exceptions."""

from __future__ import annotations

import asyncio
import types
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import MISSING

from smtpd_fork.dialogue.commands import State
from smtpd_fork.dialogue.reply import answer_of, is_plain
from smtpd_fork.dialogue.session import current_session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator

    from smtpd_fork.dialogue.shared import Shared
    from smtpd_fork.dialogue.waiting import Ask
    from smtpd_fork.smtp.connection import Connection

__all__ = [
    "as_exception",
    "ask",
    "ask_handler",
    "ask_now",
    "checked",
    "in_time",
    "is_end",
    "is_from_outside",
]


def ask(connection: Connection, hook: str, *args: Any, begun: Any = None) -> Awaitable[Any]:
    """Return the answer of a handler's hook, or of a subclass's ``_call_handler_hook()``.

    :param begun: the rest of the hook's coroutine, if it was started already
    """
    if connection.shared.overrides_hook_calls and begun is None:
        asking: Awaitable[Any] = connection.server._call_handler_hook(hook, *args)  # noqa: SLF001 - aiosmtpd's
        return asking
    return ask_handler(connection, hook, *args, begun=begun)


async def ask_handler(connection: Connection, hook: str, *args: Any, begun: Any = None) -> Any:
    """Return the answer of a handler's hook; MISSING if there is none. Its time is limited."""
    shared, dialogue = connection.shared, connection.dialogue
    function = shared.hooks.get(hook)
    if function is None:
        return MISSING
    try:
        asking = begun or function(connection.server, dialogue.session, dialogue.envelope, *args)
        answer = await in_time(connection, asking)
    except Exception:
        raise
    except BaseException as error:
        if is_from_outside(error, dialogue.id):
            raise
        raise as_exception(error) from error  # otherwise it would end the session
    return checked(shared, hook, answer)


async def in_time(connection: Connection, awaitable: Awaitable[Any]) -> Any:
    """Await something within the time limit of handlers."""
    work = connection.work
    if work is None:
        return await awaitable
    work.begin_hook()
    try:
        return await awaitable
    finally:
        work.end_hook()


def ask_now(connection: Connection, ask: Ask) -> Any:
    """Call a hook without a task; return its answer, or an Ask with the rest of its coroutine."""
    dialogue = connection.dialogue
    shared = dialogue.shared
    hook = shared.hooks[ask.hook]
    coroutine = hook(dialogue.server, dialogue.session, dialogue.envelope, *ask.args)
    try:
        if current_session.get() == dialogue.id:  # the caller is a task of the session
            waits_for = coroutine.send(None)
        else:
            waits_for = connection.context.run(coroutine.send, None)
    except StopIteration as end:
        return checked(shared, ask.hook, end.value)
    except Exception:
        raise
    except BaseException as error:
        raise as_exception(error) from error
    if waits_for is None:  # asyncio.sleep(0)
        return ask._replace(begun=_rest(coroutine))
    coroutine.close()
    raise RuntimeError(f"handle_{ask.hook} waited without a task")


@types.coroutine
def _rest(begun: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Continue a coroutine that was started, and therefore cannot be awaited itself."""
    return (yield from begun)


def checked(shared: Shared, hook: str, status: Any) -> Any:
    """Return the answer of a hook in the form in which it is sent.

    The answers of EHLO, PROXY and of DATA in LMTP are returned unchanged: they are not one reply.

    :raises TypeError: *status* is not a reply
    """
    if type(status) is str and is_plain(status):  # the usual case
        return status
    if hook in {"EHLO", "PROXY"} or (hook == "DATA" and shared.lmtp):
        return status
    return answer_of(hook, status)


def is_from_outside(error: BaseException, session_id: str | None) -> bool:
    """Return whether *error* is the cancellation or destruction of the session's task.

    CancelledError and GeneratorExit may also be raised by a handler, as an error of its own. After
    a loop was closed, its tasks are destroyed whenever the garbage collector runs: in another
    thread, while another loop runs, or in the task of another session.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return True  # no loop runs: the coroutine is being closed
    if isinstance(error, GeneratorExit):
        return session_id is None or current_session.get() != session_id
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def is_end(connection: Connection, error: BaseException) -> bool:
    """Return whether *error* ends the task or the session, and was not raised by a handler."""
    closing = connection.dialogue.state >= State.LEAVING
    ended = isinstance(error, asyncio.CancelledError) and closing
    return ended or is_from_outside(error, connection.dialogue.id)


def as_exception(error: BaseException) -> Exception:
    """Return *error*, or a RuntimeError for it, as a handler's error must not end the server."""
    if isinstance(error, Exception):
        return error
    stand_in = RuntimeError(f"a handler raised {type(error).__name__}")
    stand_in.__cause__ = error
    return stand_in
