"""Waits: whether a handler's hook can wait for anything, and what its waiting ends with."""

from __future__ import annotations

import asyncio
import dis
import inspect
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import CodeType

__all__ = ["is_from_outside", "never_waits"]

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


def is_from_outside(error: BaseException) -> bool:
    """Whether the running task was cancelled or destroyed, and *error* is that.

    A handler may raise CancelledError and GeneratorExit as well: those are faults of its own.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return True  # no loop runs: the coroutine is being closed
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


@lru_cache(maxsize=1024)
def _waits(code: CodeType) -> bool:
    if "current_task" in code.co_names:
        return True
    return any(instruction.opname in _WAITS for instruction in dis.get_instructions(code))
