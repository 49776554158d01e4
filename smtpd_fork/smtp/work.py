"""Work: what a session has to wait for, in a task that lives as long as it does.

That is a handler's hook, a method of a user's subclass, a mechanism of AUTH, a TLS handshake. There
is one such task at most, and an idle session has none. A hook that cannot wait needs none either.
"""

from __future__ import annotations

import asyncio
import logging
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import MISSING

from smtpd_fork.smtp.budget import ALLOWANCE
from smtpd_fork.smtp.reply import answer_of, is_plain
from smtpd_fork.smtp.session import Session, current_session
from smtpd_fork.smtp.state import State
from smtpd_fork.smtp.waits import is_from_outside

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextvars import Context

    Waiting = Coroutine[Any, Any, Any]
    """What a command returns that has to wait; None has not."""

__all__ = ["LOCAL_ERROR", "Work"]

log = logging.getLogger("smtpd_fork.session")

FAREWELL_SECONDS = 30.0
"""How long handle_DISCONNECT may take: nobody waits for its answer."""

LOCAL_ERROR = "451 4.3.0 Local error in processing, try again later"


def _as_exception(error: BaseException) -> Exception:
    """Return *error*, or an exception that stands for it: a handler ends no server."""
    if isinstance(error, Exception):
        return error
    stand_in = RuntimeError(f"a handler raised {type(error).__name__}")
    stand_in.__cause__ = error
    return stand_in


class Work(State):
    """A session that can wait for something."""

    @property
    def task(self) -> asyncio.Task[None] | None:
        """What runs for this session now; an idle one has none."""
        return self._task

    def _start(self, waiting: Waiting) -> None:
        """Have *waiting* run to its end; then go on."""
        self._leave_rest()
        if self._framer.held > ALLOWANCE:
            self._charge()
        self.deadline = self.loop.time() + self._setup.limits.handler_seconds
        self._task = self.loop.create_task(self._run(waiting), context=self._own_context())
        self._task.add_done_callback(partial(self._ran, waiting))

    def _own_context(self) -> Context:
        """Return the context that all of this session's hooks run in, as in aiosmtpd's one task."""
        if self._context is None:
            self._context = copy_context()
            self._context.run(current_session.set, self._session_id)
        return self._context

    def _ask(self, command: str, then: Callable[[Any], None], *args: Any) -> Waiting | None:
        """Ask a handler's hook, and have *then* act on its answer.

        A hook that never waits is asked now: a task and its two turns of the loop cost as much as
        the rest of a command. For any other one what has to be waited for is returned.
        """
        if command in self._setup.at_once and self._task is None:
            then(self._ask_now(command, *args))
            self._message_in_hand = False
            return None
        return self._ask_later(command, then, *args)

    async def _ask_later(self, command: str, then: Callable[[Any], None], *args: Any) -> None:
        then(await self._call_handler_hook(command, *args))

    def _ask_now(self, command: str, *args: Any) -> Any:
        """Return what a hook that never waits answers: its first step is its last."""
        coroutine = self._setup.hooks[command](self, self.session, self.envelope, *args)
        self._turn_pending = True  # it may call eof_received(), as aiosmtpd's tests do
        try:
            self._own_context().run(coroutine.send, None)
        except StopIteration as end:
            return self._checked(command, end.value)
        except Exception:
            raise
        except BaseException as error:
            raise _as_exception(error) from error
        finally:
            self._turn_pending = False
        coroutine.close()
        raise RuntimeError(f"handle_{command} has no await, and waited")

    def _ran(self, waiting: Waiting, task: asyncio.Task[None]) -> None:
        """Go on after a task: with the next event, or with the end."""
        waiting.close()  # if it was cancelled before it began: nothing of it has run
        self._message_in_hand = self._in_hook = self._hook_expired = False
        self._task = None
        if task.cancelled():
            self._close()
        if self._lost:
            self._task = self._farewell_task()
            if self._task is None:
                self._let_go()
        elif self._closing:
            self._set_rset_state()
            self._tell_ended()
        elif self._kicked:
            self._take_leave()
        else:
            self._advance()

    async def _run(self, waiting: Waiting) -> None:
        """Run what has to wait, whatever becomes of it."""
        try:
            try:
                await waiting
            except BaseException as error:
                if self._is_end(error):
                    raise
                if not self._lost:
                    await self._fail(error)
                elif self._message_in_hand:
                    self._setup.tally.failed += 1
        except asyncio.CancelledError:
            self._cancelled()
        except BaseException:
            self.abort()
            raise
        self._flush()

    def _is_end(self, error: BaseException) -> bool:
        """Whether *error* is the end of the task or session, and nothing that a handler raised."""
        if isinstance(error, asyncio.CancelledError) and (self._closing or self._lost):
            return True
        return is_from_outside(error)

    def _cancelled(self) -> None:
        """Act on a cancelled task: a hook's time is over, or the session's."""
        if self._hook_expired and not self._lost:
            self._hook_expired = False
            self._put_failure(LOCAL_ERROR)
        else:
            if self._message_in_hand:
                self._setup.tally.aborted += 1
            self._close()

    async def _fail(self, error: BaseException) -> None:
        """Report a failure: all of it in the log, nothing but the fact to the client."""
        status = LOCAL_ERROR
        try:
            status = await self.handle_exception(_as_exception(error))
        except BaseException as another:
            if self._is_end(another):
                raise
            self._report_failure("handle_exception failed", another)
        self._put_failure(status)

    def _put_failure(self, status: str) -> None:
        """Answer what failed; with a message in hand, its transaction is over."""
        replies = 1
        if self._message_in_hand:
            self._setup.tally.failed += 1
            replies = self._replies_owed()
            self._set_rset_state()  # RFC 5321 4.1.1.4
        self._put_verdict([status] * replies)

    async def handle_exception(self, error: Exception) -> str:
        """Return what the client is told of *error*: what the handler says, or 451."""
        hook = getattr(self.event_handler, "handle_exception", None)
        if hook is not None:
            status = answer_of("exception", await hook(error))
            if status is MISSING:
                raise TypeError("handle_exception must return a reply, not MISSING")
            return str(status)
        self._report_failure("a handler failed, the client gets 451", error)
        return LOCAL_ERROR

    async def _call_handler_hook(self, command: str, *args: Any) -> Any:
        hook = self._setup.hooks.get(command)
        if hook is None:
            return MISSING
        self._in_hook = True
        self.deadline = self.loop.time() + self._setup.limits.handler_seconds
        try:
            status = await hook(self, self.session, self.envelope, *args)
        except Exception:
            raise
        except BaseException as error:
            if is_from_outside(error):
                raise
            raise _as_exception(error) from error  # else it would pass for the session's end
        finally:
            self._in_hook = False
        return self._checked(command, status)

    def _checked(self, command: str, status: Any) -> Any:
        """Return what a hook answered as it is sent; of three hooks it is no single reply.

        :raises TypeError: it is nothing that can be sent
        """
        if type(status) is str and is_plain(status):  # as it mostly is
            return status
        if command in {"EHLO", "PROXY"} or (command == "DATA" and self._setup.lmtp):
            return status
        return answer_of(command, status)

    def _replies_owed(self) -> int:
        """Return how many replies the client expects to the message in hand."""
        raise NotImplementedError

    def abort(self) -> None:
        """Cut the connection."""
        raise NotImplementedError

    def _take_leave(self) -> None:
        raise NotImplementedError

    # -- the end of it -------------------------------------------------------------------------

    def _farewell_task(self) -> asyncio.Task[None] | None:
        if "DISCONNECT" not in self._setup.hooks:
            return None
        return self.loop.create_task(self._farewell(), context=self._own_context())

    async def _farewell(self) -> None:
        """Tell handle_DISCONNECT; it has its time, and cannot keep the connection."""
        hook = self._setup.hooks.get("DISCONNECT")
        try:
            if hook is not None:
                async with asyncio.timeout(FAREWELL_SECONDS):
                    await hook(self, self.session)
        except BaseException as error:
            if is_from_outside(error):
                raise
            self._report_failure("handle_DISCONNECT failed", error)
        finally:
            self._task = None
            self._let_go()

    def _let_go(self) -> None:
        """Keep nothing that may refer to this session: the connection is lost, and nothing runs.

        Python frees an ended session at once if nothing that it refers to refers back. Its garbage
        collector comes too late: a client can make sessions faster, each with a message.
        """
        self._envelope = self._context = None
        if self._charged:
            self._set_rset_state()
        if isinstance(self.session, Session):
            self.session.forget_transport()
        self._tell_ended()

    def _tell_ended(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    @property  # type: ignore[override]  # aiosmtpd has a task there; a future does
    def _handler_coroutine(self) -> asyncio.Future[None]:
        """What aiosmtpd has a task for: is done when the session is."""
        if self._ended is None:
            self._ended = self.loop.create_future()
            if self._lost and self._task is None:
                self._ended.set_result(None)
        return self._ended

    @_handler_coroutine.setter
    def _handler_coroutine(self, _: object) -> None:
        """Leave it: aiosmtpd's constructor is not called here."""
