"""Waiting: what a dialogue cannot do by itself, and has its host do. Plain data.

A command returns its reply, or one of these; the host carries it out, and calls
:meth:`~smtpd_fork.dialogue.dialogue.Dialogue.answer` with what came of it.
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
    """A handler's hook is to be asked."""

    hook: str  # its name, without handle_
    args: tuple[Any, ...]  # what it is called with, after server, session and envelope
    then: Callable[[Any], Result]  # acts on its answer: MISSING if there is no such hook
    begun: Awaitable[Any] | None = None  # what is left of it, if it has begun without a task


class Run(NamedTuple):
    """Something is to be done that takes several steps, and sends replies by itself."""

    step: str  # its name (see smtpd_fork.smtp.work)
    args: tuple[Any, ...] = ()  # what it is called with


class Failed(NamedTuple):
    """A handler, or the server itself, raised an exception; the client gets 451."""

    error: Exception


Waiting: TypeAlias = Union[Ask, Run, Failed]  # noqa: UP007 - NamedTuples have no | in a string
Result: TypeAlias = Union[bytes, Ask, Run, Failed, None]  # noqa: UP007 - as above
"""What a command returns: its reply, or what has to be waited for, or None: it has replied."""


class Host(Holder, Protocol):
    """Runs a dialogue: a connection, or a test without one."""

    def ask_now(self, ask: Ask) -> Any:
        """Return what a hook answers in its first step; if it waits, an Ask with what is left."""

    def refuse_handshake(self) -> str | None:
        """Return why the client is not to begin a TLS handshake; None: it is."""

    def wait_for_client(self) -> None:
        """Give the client its time for what :meth:`Dialogue.next_event` waits for."""

    def new_waiter(self) -> Any:
        """Return what :meth:`Dialogue.next_event` waits with: an asyncio.Future, or as much."""

    def unsent(self) -> int:
        """Return how many bytes wait for a client that does not read."""


def may_end_at_once(hook: Hook) -> Hook:
    """Mark a hook that often ends without waiting; else it awaits ``asyncio.sleep(0)`` first.

    Until then it runs without a task: it must not use ``asyncio.timeout()``, for one.
    """
    hook.may_end_at_once = True  # type: ignore[attr-defined]
    return hook


def begins_at_once(hook: Any) -> bool:
    """Whether *hook* may begin without a task: it ends, or says so before it waits."""
    return never_waits(hook) or getattr(hook, "may_end_at_once", None) is True


_WAITS = {"GET_AWAITABLE", "GET_ANEXT", "SEND", "YIELD_VALUE"}
"""Instructions of which one is in every await, ``async for`` and ``async with`` (:mod:`dis`)."""


def never_waits(hook: Any) -> bool:
    """Whether *hook* is a coroutine function without an await: it ends in its first step.

    One that asks which task it runs in is said to wait, lest it learn that it is none.
    """
    hook = getattr(hook, "measured_hook", hook)  # what a Tally measures waits if that does
    function = getattr(hook, "__func__", hook)
    if not inspect.isfunction(function) or not inspect.iscoroutinefunction(function):
        return False
    return not _waits(function.__code__)


@lru_cache(maxsize=1024)
def _waits(code: CodeType) -> bool:
    if "current_task" in code.co_names:
        return True
    return any(instruction.opname in _WAITS for instruction in dis.get_instructions(code))
