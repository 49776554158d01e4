"""Check: finds errors in a handler's class before the first client connects."""

from __future__ import annotations

import dis
import inspect
import logging
from collections.abc import Callable, Collection
from difflib import get_close_matches
from typing import Any

from aiosmtpd.handlers import Sink as AiosmtpdSink

from smtpd_fork.dialogue.introspection import ehlo_parameters
from smtpd_fork.dialogue.tally import HOOKS
from smtpd_fork.errors import HandlerError
from smtpd_fork.filters import Filter
from smtpd_fork.sinks import Sink
from smtpd_fork.smtp import SMTP

__all__ = ["check_handler"]

log = logging.getLogger("smtpd_fork.handlers")

COMMANDS = frozenset(name.removeprefix("smtp_") for name in dir(SMTP) if name.startswith("smtp_"))

ALIKE = 0.7
"""Similarity (:mod:`difflib`) from which on a name is taken for a misspelled one: RCTP and RCPT
have 0.75."""

_LAST_PARAMETERS: dict[str, tuple[str, ...]] = {
    "HELO": ("hostname",),
    "AUTH": ("args",),
    "PROXY": ("proxy_data",),
    "MAIL": ("address", "mail_options"),
    "RCPT": ("address", "rcpt_options"),
    "NOOP": ("argument",),
    "VRFY": ("address",),
}
"""The parameters of hooks after server, session and envelope; handle_EHLO has two forms."""

_AWAITABLES = ("Awaitable", "Coroutine", "Future", "Task")
"""Annotations of plain functions that return an awaitable."""

_TEXTS = {"BUILD_STRING", "FORMAT_SIMPLE", "FORMAT_VALUE", "FORMAT_WITH_SPEC"}
"""Instructions that create an f-string (:mod:`dis`)."""


def check_handler(handler: Any, commands: Collection[str] = ()) -> None:
    """Check that *handler* is valid; log a warning for a probable mistake.

    :param commands: commands of a subclass of SMTP, which may call further hooks
    :raises HandlerError: it is a class, has no hook, or has an invalid hook
    """
    names = [name for name in dir(handler) if name.startswith("handle_")]
    if inspect.isclass(handler):
        _check_class(handler, names)
    kind = _name_of(handler)
    if not names and not isinstance(handler, AiosmtpdSink) and not _has_other_methods(handler):
        reason = "it has no handle_DATA, handle_RCPT or other hook"
        if hasattr(handler, "deliver"):
            reason = f"deliver() needs the base class smtpd_fork.Sink: class {kind}(Sink)"
        raise HandlerError(f"{kind} is not a handler: {reason}")
    for name in names:
        command = name.removeprefix("handle_")
        if command in HOOKS or command == "exception":
            _check_hook(getattr(handler, name), name, kind)
        elif command not in commands:
            _check_name(command, kind, names)
    _check_on_reload(getattr(handler, "on_reload", None), kind)
    if isinstance(handler, (Filter, Sink)):
        _check_stages(handler, kind)
    if isinstance(handler, Sink):
        _check_deliver(handler, kind)


def _check_stages(handler: Filter | Sink, kind: str) -> None:
    """Check that the methods for start and end are coroutine functions or not, as they must be."""
    for name in ("check", "prepare"):
        if inspect.iscoroutinefunction(getattr(handler, name)):
            raise HandlerError(f"{kind}: {name} is not awaited: write def {name}(self)")
    if not inspect.iscoroutinefunction(handler.close):
        _check_awaited(_function(handler.close), "close", kind)


def _check_deliver(sink: Sink, kind: str) -> None:
    """Check that a sink has a valid deliver(mail), or its own handle_DATA."""
    deliver = sink.deliver
    if _function(deliver) is Sink.deliver:
        if _function(sink.handle_DATA) is Sink.handle_DATA:
            raise HandlerError(f"{kind} has no deliver(): write async def deliver(self, mail)")
        return
    _check_parameters(deliver, "deliver", kind, ("mail",))
    if not inspect.iscoroutinefunction(deliver):
        _check_awaited(_function(deliver), "deliver", kind)


def _function(method: Callable[..., Any]) -> Any:
    return inspect.unwrap(getattr(method, "__func__", method))


def _check_on_reload(method: Any, kind: str) -> None:
    """Check that a reload can call ``on_reload`` in a thread."""
    if method is None:
        return
    if inspect.iscoroutinefunction(method):
        raise HandlerError(f"{kind}: on_reload is called in a thread: write def on_reload(self)")
    try:
        inspect.signature(method).bind()
    except TypeError:
        raise HandlerError(f"{kind}: on_reload takes no parameter") from None


def _check_class(handler: type, names: Collection[str]) -> None:
    """Check that the handler is an instance; a class with static methods is valid."""
    for name in names:
        if inspect.isfunction(inspect.getattr_static(handler, name)):
            kind = handler.__name__
            raise HandlerError(f"{kind} is a class, not an instance: write {kind}()")


def _has_other_methods(handler: Any) -> bool:
    return hasattr(handler, "process_message") or any(n.startswith("auth_") for n in dir(handler))


def _check_name(command: str, kind: str, names: Collection[str]) -> None:
    """Check that an unknown hook name is not a misspelled one."""
    missing = {n.upper(): n for n in (*HOOKS, "exception") if f"handle_{n}" not in names}
    alike = get_close_matches(command.upper(), missing, n=1, cutoff=ALIKE)
    if alike and command not in COMMANDS:
        meant = f"did you mean handle_{missing[alike[0]]}?"
        raise HandlerError(f"{kind}: handle_{command} would never be called; {meant}")
    if command.isupper():
        log.warning("%s: handle_%s is never called: no command calls it", kind, command)


def _check_hook(hook: Any, name: str, kind: str) -> None:
    """Check that a hook can be called and awaited."""
    if hook is None:
        return
    if not callable(hook):
        raise HandlerError(f"{kind}: {name} is {hook!r:.80}, and cannot be called")
    if name == "handle_EHLO" and ehlo_parameters(hook) is None:
        wanted = "(server, session, envelope, hostname, responses)"
        raise HandlerError(f"{kind}: handle_EHLO takes {wanted}, not {inspect.signature(hook)}")
    if name not in {"handle_EHLO", "handle_exception"}:
        _check_parameters(hook, name, kind, _hook_parameters(name.removeprefix("handle_")))
    if name != "handle_STARTTLS" and not inspect.iscoroutinefunction(hook):
        _check_awaited(_function(hook), name, kind)


def _hook_parameters(command: str) -> tuple[str, ...]:
    wanted = ("server", "session", "envelope", *_LAST_PARAMETERS.get(command, ()))
    return wanted[:2] if command in {"CONNECT", "DISCONNECT"} else wanted


def _check_parameters(
    hook: Callable[..., Any], name: str, kind: str, wanted: tuple[str, ...]
) -> None:
    """Check that a hook accepts its arguments; otherwise each call would fail with 451."""
    try:
        signature = inspect.signature(hook)
    except (TypeError, ValueError):  # perhaps a C function
        return
    try:
        signature.bind(*wanted)
    except TypeError:
        reason = f"{name} takes ({', '.join(wanted)}), not {signature}"
        raise HandlerError(f"{kind}: {reason}") from None


def _check_awaited(function: Any, name: str, kind: str) -> None:
    """Check that a hook that is not a coroutine function returns an awaitable."""
    if not inspect.isfunction(function) or inspect.iscoroutinefunction(function):
        return  # a mock, a partial, or a wrapper of a coroutine function
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise HandlerError(f"{kind}: {name} yields; it must return its answer")
    if any(word in str(function.__annotations__.get("return", "")) for word in _AWAITABLES):
        return
    advice = f"{kind}: {name} is awaited: write async def {name}(...)"
    if _returns_no_awaitable(function):
        raise HandlerError(advice)
    log.warning("%s, or return something to await", advice)


def _returns_no_awaitable(function: Callable[..., Any]) -> bool:
    """Return whether a plain function returns a text somewhere, or None everywhere."""
    returned: list[str] = []
    before = ""
    for each in dis.get_instructions(function):
        if each.opname == "RETURN_CONST":
            returned.append(type(each.argval).__name__)
        elif each.opname == "RETURN_VALUE":
            returned.append(before)
        before = type(each.argval).__name__ if each.opname == "LOAD_CONST" else each.opname
    return bool(returned) and (
        any(kind == "str" or kind in _TEXTS for kind in returned)
        or all(kind == "NoneType" for kind in returned)
    )


def _name_of(handler: Any) -> str:
    if inspect.isclass(handler) or inspect.ismodule(handler):
        return str(handler.__name__)
    return type(handler).__name__
