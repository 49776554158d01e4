"""Work: what a session waits for, in a task that lives as long as it does.

That is a handler's hook, a method of a user's class, a mechanism of AUTH, a TLS handshake. There is
one such task at most, and an idle session has none. A hook that cannot wait needs none either.
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
    "judge_proxy_header": opening.judge_proxy_header,
    "old_rset_hook": procedures.old_rset_hook,
    "own_command": procedures.own_command,
    "process_message": procedures.process_message,
    "read_proxy_header": opening.read_proxy_header,
    "start_tls": starttls.start_tls,
    "tell_disconnected": procedures.tell_disconnected,
}
"""What a :class:`~smtpd_fork.dialogue.waiting.Run` names."""

EAGER: dict[str, Any] = {"eager_start": True} if sys.version_info >= (3, 12) else {}
"""Where Python can, the first step of a task is taken at once: mostly it is the last."""


class Time(Enum):
    """Whose time limit holds for what runs."""

    SESSION = "the session's"
    HANDLER = "the handler's"
    OVER = "none: the handler's time is over, and it was cancelled"


class Work:
    """One task of a session.

    :param connection: the session's
    :param waiting: what is to be carried out
    :ivar task: does it
    """

    __slots__ = ("_connection", "_time", "_told", "task")

    def __init__(self, connection: Connection, waiting: Waiting) -> None:
        self._connection = connection
        self._time = Time.SESSION
        self._told = type(waiting) is Run and waiting.step == "tell_disconnected"
        self.task: asyncio.Task[None] | None = None
        connection.work = self
        loop, context = connection.loop, connection.context
        task: asyncio.Task[None]
        # A context is entered once: not again by what a task of the session starts.
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
        """Start a handler's time limit."""
        connection = self._connection
        self._time = Time.HANDLER
        connection.deadline = connection.loop.time() + connection.shared.limits.handler_seconds

    def end_hook(self) -> None:
        """Return to the session's time limits."""
        if self._time is Time.HANDLER:
            self._time = Time.SESSION

    def expire(self, now: float) -> bool:
        """Act on the deadline; return whether that was a handler's."""
        connection = self._connection
        if self._time is Time.OVER:
            connection.cut()  # it was cancelled, and takes no notice
        elif self._time is Time.HANDLER:
            what = "a handler took too long, the client gets 451"
            connection.dialogue.report(logging.WARNING, what)
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
        """Take note that the connection is lost: a handler with a message in hand finishes.

        :param drained: what may wait for the client to read
        """
        dialogue = self._connection.dialogue
        for waiter in (drained, dialogue.awaited):
            if waiter is not None and not waiter.done():
                waiter.cancel()
        if not dialogue.handler_busy:
            self.cancel()

    # -- the task ----------------------------------------------------------------------------------

    async def _run(self, first: Waiting) -> None:
        """Carry out what is waited for, and go on, until the client is to say something."""
        connection = self._connection
        waiting: Waiting | None = first
        self.task = asyncio.current_task()
        turn = 0
        while waiting is not None:
            turn += 1
            if turn % EVENTS_A_TURN == 0:
                await asyncio.sleep(0)  # other sessions have their turn
            connection.deadline = connection.loop.time() + connection.shared.limits.handler_seconds
            # It is caught here, and no deeper: GeneratorExit, thrown into a task, comes to what the
            # task awaits as its end, and to the task itself all the same.
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
        """Go on after one thing; return what is to be carried out next, if there is any."""
        connection = self._connection
        dialogue = connection.dialogue
        connection.work = None
        dialogue.answered()
        if connection.gone:
            if self._told:
                ending.let_go(connection)
            else:
                ending.say_disconnected(connection)
            return None
        if delays.hold(connection):
            self.task = None
            return None
        connection.flush()
        if dialogue.state >= State.LEAVING:
            ending.tell_ended(connection)
        elif connection.kicked:
            ending.take_leave(connection)
        elif not connection.blocked:
            dialogue.advance()
            if delays.hold(connection):
                self.task = None
                return None
            connection.flush()
            if dialogue.waiting is not None and dialogue.state < State.LEAVING:
                connection.work = self
                return dialogue.waiting
            connection.go_on()
        self.task = None
        return None

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Go on, if the task was cancelled before it began, or could not go on itself."""
        if self._connection.work is self:
            if task.cancelled():
                self._connection.dialogue.leave()
            waiting = self._next()
            if waiting is not None:
                Work(self._connection, waiting)

    def _cancelled(self) -> None:
        """Act on a cancelled task: a hook's time is over, or the session's."""
        connection = self._connection
        if self._time is Time.OVER and not connection.gone:
            self._time = Time.SESSION
            if self.task is not None:
                self.task.uncancel()  # it goes on: what later hooks raise is theirs again
            self._put_failure(replies.LOCAL_ERROR)
        else:
            if connection.dialogue.handler_busy:
                connection.shared.tally.aborted += 1
            connection.dialogue.leave()

    async def _fail(self, error: BaseException) -> None:
        """Report a failure: the traceback to the log, a reply without details to the client."""
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
        """Answer what failed; with a message in hand, its transaction is over."""
        dialogue = self._connection.dialogue
        if dialogue.handler_busy:
            fail_message(dialogue, status)
        else:
            dialogue.put(reply_bytes(status), by_handler=status != replies.LOCAL_ERROR)
