"""Waiting: operations that a dialogue's host carries out. Plain data.

A command returns its reply, or one of these operations. The host carries it out, and calls
:meth:`~smtpd_fork.dialogue.dialogue.Dialogue.answer` with the result.
"""

from __future__ import annotations

import dis
import inspect
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar, Union

from smtpd_fork.dialogue.budget import Holder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import CodeType


__all__ = [
    "Ask", "Failed", "Host", "Result", "Run", "Waiting", "begins_at_once", "may_end_at_once",
    "never_waits",
]  # fmt: skip

Hook = TypeVar("Hook", bound="Callable[..., Any]")


class Ask(NamedTuple):
    """Call a handler's hook."""

    hook: str  # the name of the hook, without handle_
    args: tuple[Any, ...]  # its arguments after server, session and envelope
    then: Callable[[Any], Result]  # processes its answer: MISSING if there is no such hook
    begun: Awaitable[Any] | None = None  # the rest of it, if it was started without a task


class Run(NamedTuple):
    """Run a procedure of several steps, which sends replies itself."""

    step: str  # the name of the procedure (see smtpd_fork.smtp.work)
    args: tuple[Any, ...] = ()  # its arguments


class Failed(NamedTuple):
    """A handler or the server raised an exception; the client gets 451."""

    error: Exception


Waiting: TypeAlias = Union[Ask, Run, Failed]  # noqa: UP007 - NamedTuples have no | in a string
Result: TypeAlias = Union[bytes, Ask, Run, Failed, None]  # noqa: UP007 - as above
"""The result of a command: its reply, an operation to wait for, or None if it has replied."""


class Host(Holder, Protocol):
    """The host of a dialogue: a connection, or a test without one."""

    def ask_now(self, ask: Ask) -> Any:
        """Call a hook without a task; return its answer, or if it waits an Ask with its rest."""

    def refuse_handshake(self) -> str | None:
        """Return the reason why a TLS handshake is not allowed, or None."""

    def wait_for_client(self) -> None:
        """Set the deadline for the input that :meth:`Dialogue.next_event` waits for."""

    def new_waiter(self) -> Any:
        """Return an asyncio.Future, or a similar object, for :meth:`Dialogue.next_event`."""

    def unsent(self) -> int:
        """Return the number of bytes that could not be sent yet."""


def may_end_at_once(hook: Hook) -> Hook:
    """Mark a hook that often ends without waiting; otherwise it awaits ``asyncio.sleep(0)`` first.

    Until then it runs without a task, so it must not use functions such as ``asyncio.timeout()``.
    """
    hook.may_end_at_once = True  # type: ignore[attr-defined]
    return hook


def begins_at_once(hook: Any) -> bool:
    """Return whether *hook* may be started without a task."""
    return never_waits(hook) or getattr(hook, "may_end_at_once", None) is True


_WAITS = {"GET_AWAITABLE", "GET_ANEXT", "SEND", "YIELD_VALUE"}
"""Instructions of :mod:`dis`, one of which is in every ``await``, ``async for`` and ``async
with``."""


def never_waits(hook: Any) -> bool:
    """Return whether *hook* is a coroutine function without an await, which ends in its first step.

    For a function that calls ``current_task()`` the result is False, as it must run in a task.
    """
    hook = getattr(hook, "measured_hook", hook)  # a hook that a Tally measures
    function = getattr(hook, "__func__", hook)
    if not inspect.isfunction(function) or not inspect.iscoroutinefunction(function):
        return False
    return not _waits(function.__code__)


@lru_cache(maxsize=1024)
def _waits(code: CodeType) -> bool:
    if "current_task" in code.co_names:
        return True
    return any(instruction.opname in _WAITS for instruction in dis.get_instructions(code))
