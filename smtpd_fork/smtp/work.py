"""Work: the operation that a session waits for, in a task that lasts as long as the operation.

It is a handler's hook, a method of a user's class, a mechanism of AUTH, or a TLS handshake. A
session has at most one such task, and none while it is idle. A hook that cannot wait needs no task
either.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from enum import Enum
from typing import TYPE_CHECKING, Any

from smtpd_fork.dialogue import replies
from smtpd_fork.dialogue.commands import State
from smtpd_fork.dialogue.data import fail_message
from smtpd_fork.dialogue.fast_path import EVENTS_A_TURN
from smtpd_fork.dialogue.reply import reply_bytes
from smtpd_fork.dialogue.session import current_session
from smtpd_fork.dialogue.waiting import Ask, Failed, Run
from smtpd_fork.smtp import client_change, delays, ending, opening, procedures, starttls
from smtpd_fork.smtp.hooks import as_exception, ask

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from smtpd_fork.dialogue.waiting import Waiting
    from smtpd_fork.smtp.connection import Connection

__all__ = ["Work"]

PROCEDURES: dict[str, Callable[..., Awaitable[None]]] = {
    "authenticate": procedures.authenticate,
    "change_client": client_change.change_client,
    "ehlo_hooks": procedures.ehlo_hooks,
    "greet": opening.greet,
    "check_proxy_header": opening.check_proxy_header,
    "old_rset_hook": procedures.old_rset_hook,
    "subclass_command": procedures.subclass_command,
    "process_message": procedures.process_message,
    "read_proxy_header": opening.read_proxy_header,
    "start_tls": starttls.start_tls,
    "disconnect_hook": procedures.disconnect_hook,
}
"""The procedures of :class:`~smtpd_fork.dialogue.waiting.Run`, by name."""

EAGER: dict[str, Any] = {"eager_start": True} if sys.version_info >= (3, 12) else {}
"""The first step of a task runs at once where Python supports it, as it is mostly the last one."""


class Time(Enum):
    """The time limit that applies to the running operation."""

    SESSION = "that of the session"
    HANDLER = "that of a hook"
    OVER = "none: the hook was cancelled, as its time was over"


class Work:
    """A task of a session.

    :param connection: the connection of the session
    :param waiting: the operation
    :ivar task: the task, None after its end
    """

    __slots__ = ("_connection", "_is_disconnect", "_time", "task")

    def __init__(self, connection: Connection, waiting: Waiting) -> None:
        self._connection = connection
        self._time = Time.SESSION
        self._is_disconnect = type(waiting) is Run and waiting.step == "disconnect_hook"
        self.task: asyncio.Task[None] | None = None
        connection.work = self
        loop, context = connection.loop, connection.context
        task: asyncio.Task[None]
        # A context cannot be entered again by code that a task of the session calls.
        within = current_session.get() == connection.dialogue.id
        if EAGER and not within and loop.get_task_factory() is None:
            task = asyncio.Task(self._run(waiting), loop=loop, context=context, **EAGER)
        else:
            task = loop.create_task(self._run(waiting), context=context)
        if not task.done():
            self.task = task
            task.add_done_callback(self._ended)

    # -- time --------------------------------------------------------------------------------------

    def begin_hook(self) -> None:
        """Start the time limit of a hook."""
        connection = self._connection
        self._time = Time.HANDLER
        connection.deadline = connection.loop.time() + connection.shared.limits.handler_seconds

    def end_hook(self) -> None:
        """Return to the session's time limits."""
        if self._time is Time.HANDLER:
            self._time = Time.SESSION

    def expire(self, now: float) -> bool:
        """Handle an expired deadline; return whether it was that of a hook."""
        connection = self._connection
        if self._time is Time.OVER:
            connection.cut()  # the hook ignores its cancellation
        elif self._time is Time.HANDLER:
            event = "a handler took too long, the client gets 451"
            connection.dialogue.report(logging.WARNING, event)
            self._time = Time.OVER
            connection.deadline = now + ending.LINGER_SECONDS
            self.cancel()
        else:
            return False
        return True

    def cancel(self) -> None:
        """Cancel the task."""
        if self.task is not None:
            self.task.cancel()

    def abandon(self, drained: asyncio.Future[None] | None) -> None:
        """Handle the loss of the connection; a handler that has a message continues.

        :param drained: a future of code that waits for the client to read
        """
        dialogue = self._connection.dialogue
        for waiter in (drained, dialogue.awaited):
            if waiter is not None and not waiter.done():
                waiter.cancel()
        if not dialogue.handler_busy:
            self.cancel()

    # -- the task ----------------------------------------------------------------------------------

    async def _run(self, first: Waiting) -> None:
        """Carry out operations until the session waits for the client."""
        connection = self._connection
        waiting: Waiting | None = first
        self.task = asyncio.current_task()
        turn = 0
        while waiting is not None:
            turn += 1
            if turn % EVENTS_A_TURN == 0:
                await asyncio.sleep(0)  # let other sessions run
            connection.deadline = connection.loop.time() + connection.shared.limits.handler_seconds
            # Errors are caught here and not in the called coroutine: a GeneratorExit that is thrown
            # into a task ends the awaited coroutine first, and then reaches the task as well.
            try:
                try:
                    await self._do(waiting)
                except BaseException as error:
                    if connection.is_end(error):
                        raise
                    if not connection.gone:
                        await self._fail(error)
                    elif connection.dialogue.handler_busy:
                        connection.shared.tally.failed += 1
            except asyncio.CancelledError:
                self._cancelled()
            except BaseException:
                connection.abort()
                raise
            waiting = self._next()

    async def _do(self, waiting: Waiting) -> None:
        dialogue = self._connection.dialogue
        if type(waiting) is Ask:
            hook, args, _, begun = waiting
            answer = await ask(self._connection, hook, *args, begun=begun)
            dialogue.act(dialogue.answer(waiting, answer))
        elif type(waiting) is Run:
            await PROCEDURES[waiting.step](self._connection, *waiting.args)
        else:
            assert isinstance(waiting, Failed)
            await self._fail(waiting.error)

    def _next(self) -> Waiting | None:
        """Continue after an operation; return the next one, if there is any."""
        connection = self._connection
        dialogue = connection.dialogue
        connection.work = None
        dialogue.answered()
        if connection.gone:
            if self._is_disconnect:
                ending.release(connection)
            else:
                ending.end_after_hook(connection)
            return None
        if delays.delay(connection):
            self.task = None
            return None
        connection.flush()
        if dialogue.state >= State.LEAVING:
            ending.complete_end(connection)
        elif connection.kicked:
            ending.send_last_reply(connection)
        elif not connection.blocked:
            dialogue.advance()
            if delays.delay(connection):
                self.task = None
                return None
            connection.flush()
            if dialogue.waiting is not None and dialogue.state < State.LEAVING:
                connection.work = self
                return dialogue.waiting
            connection.proceed()
        self.task = None
        return None

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Continue if the task was cancelled before its first step, or could not do so itself."""
        if self._connection.work is self:
            if task.cancelled():
                self._connection.dialogue.leave()
            waiting = self._next()
            if waiting is not None:
                Work(self._connection, waiting)

    def _cancelled(self) -> None:
        """Handle the cancellation of the task by a hook's time limit, or by the session's end."""
        connection = self._connection
        if self._time is Time.OVER and not connection.gone:
            self._time = Time.SESSION
            if self.task is not None:
                self.task.uncancel()  # the task continues with further hooks
            self._put_failure(replies.LOCAL_ERROR)
        else:
            if connection.dialogue.handler_busy:
                connection.shared.tally.aborted += 1
            connection.dialogue.leave()

    async def _fail(self, error: BaseException) -> None:
        """Log the traceback of an error, and send the client a reply without details."""
        connection = self._connection
        status = replies.LOCAL_ERROR
        try:
            status = await connection.server.handle_exception(as_exception(error))
        except BaseException as another:
            if connection.is_end(another):
                raise
            connection.dialogue.report_failure("handle_exception failed", another)
        self._put_failure(status)

    def _put_failure(self, status: str) -> None:
        """Reply to a failed operation; if a handler had a message, end the transaction."""
        dialogue = self._connection.dialogue
        if dialogue.handler_busy:
            fail_message(dialogue, status)
        else:
            dialogue.put(reply_bytes(status), by_handler=status != replies.LOCAL_ERROR)
