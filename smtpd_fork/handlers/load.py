"""Handlers by name: ``maildir:PATH``, ``debug``, ``discard``, or ``module:attr``.

``module:attr`` names an instance, a class, or a function that returns an instance. Arguments may
follow: ``module:attr:one,two``. A class with aiosmtpd's ``from_cli(parser, *args)`` is made by it.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from argparse import ArgumentParser
from typing import TYPE_CHECKING, Any, NoReturn

from smtpd_fork.errors import HandlerError
from smtpd_fork.handlers.chain import Chain
from smtpd_fork.sanitizer import shown_handler, without_arguments
from smtpd_fork.sinks import Debug, Discard, Maildir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["load_handler", "load_handlers"]

DEFAULT_MAILDIR = "./Maildir"

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def load_handlers(names: Iterable[str]) -> Chain:
    """Return the chain of the handlers that *names* name, in order.

    :raises HandlerError: one of them cannot be found, imported or constructed
    """
    return Chain([load_handler(text) for text in names])


def load_handler(text: str) -> Any:
    """Return the handler that *text* names.

    :raises HandlerError: it cannot be found, imported or constructed
    """
    shown = shown_handler(text)
    name, colon, argument = text.partition(":")
    builtin = _BUILTIN.get(name)
    if builtin is not None:
        try:
            return builtin(argument if colon else None)
        except (ValueError, RuntimeError) as error:  # pathlib's RuntimeError: no such user's home
            raise HandlerError(f"handler {shown!r}: {error}") from None
    if not colon:
        known = ", ".join(sorted(_BUILTIN))
        raise HandlerError(f"handler {shown!r}: no such name ({known}), nor a module:attr")
    attr, _, arguments = argument.partition(":")
    found = _find(shown, name, attr)
    return _make(shown, found, arguments.split(",") if arguments else [])


def _maildir(path: str | None) -> Maildir:
    if path == "":
        raise ValueError("a path has to follow maildir:")
    return Maildir(path or DEFAULT_MAILDIR)


def _debug(argument: str | None) -> Debug:
    if argument is not None:
        raise ValueError("debug takes no argument")
    return Debug()


def _discard(argument: str | None) -> Discard:
    if argument is not None:
        raise ValueError("discard takes no argument")
    return Discard()


_BUILTIN: dict[str, Callable[[str | None], Any]] = {
    "debug": _debug,
    "discard": _discard,
    "maildir": _maildir,
}


def _find(shown: str, module_name: str, attr: str) -> Any:
    """Import what ``module:attr`` names; the current directory counts, as for ``python -m``."""
    if not _DOTTED.fullmatch(module_name) or not _DOTTED.fullmatch(attr):
        raise HandlerError(f"handler {shown!r}: not a module:attr")
    here = os.getcwd()  # noqa: PTH109 - sys.path holds strings
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever a module does when it is imported
        raise HandlerError(
            f"handler {shown!r}: cannot import {module_name}: {_one_line(error)}"
        ) from error
    for part in attr.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise HandlerError(f"handler {shown!r}: {module_name} has no {attr}") from None
    return found


def _make(shown: str, found: Any, arguments: list[str]) -> Any:
    """Return an instance: *found* itself, or what it makes when it is called."""
    is_class = inspect.isclass(found)
    if not is_class and (not callable(found) or _is_handler(found)):
        if arguments:
            raise HandlerError(f"handler {shown!r}: an instance takes no arguments")
        handler = found
    else:
        try:
            if is_class and hasattr(found, "from_cli"):
                handler = found.from_cli(_Parser(), *arguments)
            else:
                handler = found(*arguments)
        except HandlerError as error:
            said = without_arguments(str(error), ",".join(arguments))
            raise HandlerError(f"handler {shown!r}: {said}") from None
        except (Exception, SystemExit) as error:  # whatever a constructor does
            said = without_arguments(_one_line(error), ",".join(arguments))
            raise HandlerError(f"handler {shown!r}: {said}") from error
    if inspect.iscoroutine(handler):
        handler.close()
        raise HandlerError(f"handler {shown!r}: coroutine is not a handler")
    if isinstance(handler, (str, bytes, int, float, type(None))) or type(handler) in (
        list,
        tuple,
        dict,
    ):
        raise HandlerError(f"handler {shown!r}: {type(handler).__name__} is not a handler")
    return handler


def _is_handler(thing: Any) -> bool:
    return any(name.startswith(("handle_", "auth_", "process_message")) for name in dir(thing))


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _Parser(ArgumentParser):
    """What ``from_cli`` complains to."""

    def __init__(self) -> None:
        super().__init__(prog="smtpd-fork", add_help=False)

    def error(self, message: str) -> NoReturn:
        raise HandlerError(message)
