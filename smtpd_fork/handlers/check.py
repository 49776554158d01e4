"""Check: faults of a handler that show before the first client comes, as far as its class tells."""

from __future__ import annotations

import dis
import inspect
import logging
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from aiosmtpd.handlers import Sink as AiosmtpdSink

from smtpd_fork.dialogue.introspection import ehlo_parameters
from smtpd_fork.dialogue.tally import HOOKS
from smtpd_fork.errors import HandlerError
from smtpd_fork.smtp import SMTP

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

__all__ = ["check_handler"]

log = logging.getLogger("smtpd_fork.handlers")

COMMANDS = frozenset(name.removeprefix("smtp_") for name in dir(SMTP) if name.startswith("smtp_"))

ALIKE = 0.7
"""Similarity of two names (:mod:`difflib`): RCTP and RCPT have 0.75."""

_SOON = ("Awaitable", "Coroutine", "Future", "Task")
"""What a plain function is annotated with that returns something to await."""

_TEXTS = {"BUILD_STRING", "FORMAT_SIMPLE", "FORMAT_VALUE", "FORMAT_WITH_SPEC"}
"""Instructions that make an f-string (:mod:`dis`)."""


def check_handler(handler: Any, commands: Collection[str] = ()) -> None:
    """See that *handler* can be asked; log a warning for what is likely a mistake.

    :param commands: of a subclass of SMTP, which may ask hooks of its own
    :raises HandlerError: it is a class, has no hook, or one that cannot be asked
    """
    names = [name for name in dir(handler) if name.startswith("handle_")]
    if inspect.isclass(handler):
        _check_class(handler, names)
    if not names and not isinstance(handler, AiosmtpdSink) and not _has_others(handler):
        raise HandlerError(
            f"{_described(handler)} is no handler: it has no handle_DATA, handle_RCPT or other hook"
        )
    for name in names:
        hook = name.removeprefix("handle_")
        if hook in HOOKS or hook == "exception":
            _check_hook(handler, name)
        elif hook not in commands:
            _check_name(handler, name, names)


def _check_class(handler: type, names: Collection[str]) -> None:
    """See that a class is not given where an instance is meant; one of static methods may be."""
    for name in names:
        if inspect.isfunction(inspect.getattr_static(handler, name)):
            raise HandlerError(
                f"{handler.__name__} is a class, not an instance: write {handler.__name__}()"
            )


def _has_others(handler: Any) -> bool:
    return hasattr(handler, "process_message") or any(n.startswith("auth_") for n in dir(handler))


def _check_name(handler: Any, name: str, names: Collection[str]) -> None:
    """See that a name that is no hook's is not a hook's with a typing error."""
    hook = name.removeprefix("handle_")
    missing = {known.upper(): known for known in (*HOOKS, "exception")}
    missing = {k: v for k, v in missing.items() if f"handle_{v}" not in names}
    alike = get_close_matches(hook.upper(), missing, n=1, cutoff=ALIKE)
    if alike and hook not in COMMANDS:
        raise HandlerError(
            f"{_described(handler)}: {name} would never be called; did you mean "
            f"handle_{missing[alike[0]]}?"
        )
    if hook.isupper():
        log.warning("%s: %s is never called: no command asks it", _described(handler), name)


def _check_hook(handler: Any, name: str) -> None:
    """See that a hook can be called and awaited."""
    hook = getattr(handler, name)
    if hook is None:
        return
    if not callable(hook):
        raise HandlerError(f"{_described(handler)}: {name} is {hook!r:.80}, and cannot be called")
    if name == "handle_EHLO" and ehlo_parameters(hook) is None:
        raise HandlerError(
            f"{_described(handler)}: handle_EHLO takes (server, session, envelope, hostname, "
            f"responses), not {inspect.signature(hook)}"
        )
    if name == "handle_STARTTLS" or inspect.iscoroutinefunction(hook):
        return
    function = inspect.unwrap(getattr(hook, "__func__", hook))
    if not inspect.isfunction(function) or inspect.iscoroutinefunction(function):
        return  # a mock, a partial, or a wrapper of a coroutine function
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise HandlerError(f"{_described(handler)}: {name} yields; it has to return its answer")
    if any(word in str(function.__annotations__.get("return", "")) for word in _SOON):
        return
    advice = f"{_described(handler)}: {name} is awaited: write async def {name}(...)"
    if _returns_no_awaitable(function):
        raise HandlerError(advice)
    log.warning("%s, or return something to await", advice)


def _returns_no_awaitable(function: Callable[..., Any]) -> bool:
    """Whether a plain function returns a text somewhere, or None everywhere."""
    returned: list[str] = []
    before = ""
    for each in dis.get_instructions(function):
        if each.opname == "RETURN_CONST":
            returned.append(type(each.argval).__name__)
        elif each.opname == "RETURN_VALUE":
            returned.append(before)
        before = type(each.argval).__name__ if each.opname == "LOAD_CONST" else each.opname
    return bool(returned) and (
        any(what == "str" or what in _TEXTS for what in returned)
        or all(what == "NoneType" for what in returned)
    )


def _described(handler: Any) -> str:
    if inspect.isclass(handler) or inspect.ismodule(handler):
        return str(handler.__name__)
    return type(handler).__name__
