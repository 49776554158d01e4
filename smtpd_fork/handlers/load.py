"""Load handlers by name: a built-in one such as ``maildir:PATH``, or ``module:attr``.

``module:attr`` names an instance, a class, or a function that returns an instance. Arguments may
follow: ``module:attr:one,two``. A class with aiosmtpd's ``from_cli(parser, *args)`` is constructed
by that method.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NoReturn

from smtpd_fork.errors import HandlerError
from smtpd_fork.filters import Filter
from smtpd_fork.handlers.chain import Chain, sink_limit
from smtpd_fork.handlers.check import ALIKE
from smtpd_fork.handlers.parameters import Parameters
from smtpd_fork.handlers.route import Route
from smtpd_fork.handlers.spec import HandlerEntry, HandlerSpec
from smtpd_fork.import_here import import_here
from smtpd_fork.sanitizer import shown_handler, without_arguments
from smtpd_fork.setting_types import SettingError
from smtpd_fork.sinks import Sink

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "BUILT_IN", "load_handler", "load_handlers", "load_handlers_again", "load_route", "modules_of",
]  # fmt: skip

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

_PLAIN = (str, bytes, int, float, type(None))
"""Types that are never a handler."""


def load_handlers(
    entries: Iterable[HandlerEntry],
    directory: Path | None = None,
    *,
    seconds: float = math.inf,
) -> Chain:
    """Return the chain of the handlers of *entries*, in order.

    :param directory: the directory for relative paths; default: the current directory
    :param seconds: the time limit of a hook
    :raises HandlerError: a handler cannot be found, imported or constructed, or the handlers
        contradict each other
    """
    routes = []
    for number, entry in enumerate(entries, 1):
        try:
            routes.append(load_route(entry, directory, seconds=seconds))
        except HandlerError as error:
            error.entry = number
            raise
    chain = Chain(routes)
    for reason in chain.errors:
        raise HandlerError(reason)
    return chain


def load_handlers_again(
    entries: Iterable[HandlerEntry],
    modules: Collection[str],
    directory: Path | None = None,
    *,
    seconds: float = math.inf,
) -> Chain:
    """Return a chain of the same handlers, with *modules* imported again.

    :raises HandlerError: a handler cannot be loaded; the previous modules are restored
    """
    before = {name: sys.modules.pop(name) for name in modules if name in sys.modules}
    importlib.invalidate_caches()
    try:
        return load_handlers(entries, directory, seconds=seconds)
    except BaseException:
        for name in modules:
            sys.modules.pop(name, None)
        sys.modules.update(before)
        raise


def modules_of(entries: Iterable[HandlerEntry]) -> set[str]:
    """Return the names of the modules in *entries*; built-in handlers have none."""
    names = {entry.get("use", "") if isinstance(entry, dict) else entry for entry in entries}
    return {module for each in names if (module := each.partition(":")[0]) not in BUILT_IN}


def load_route(
    entry: HandlerEntry, directory: Path | None = None, *, seconds: float = math.inf
) -> Route:
    """Return the handler of an entry, with its conditions.

    :param seconds: the time limit of a hook
    :raises HandlerError: it cannot be found, imported or constructed
    """
    key = ""
    try:
        try:
            spec = HandlerSpec.of(entry)
            route = _route(spec, directory)
            _check_limit(spec, route, seconds)
        except SettingError as error:
            key = error.setting
            value = shown_value(entry, key, error.value)
            raise HandlerError(f"{key}{value}: {error.reason}") from None
        return route  # noqa: TRY300 - this is the end of the inner block
    except HandlerError as error:
        named = HandlerError(f"handler {shown_entry(entry)}: {error}")
        named.key = key
        raise named from error.__cause__


def shown_entry(entry: HandlerEntry) -> str:
    """Return an entry in the form of error messages."""
    if isinstance(entry, dict):
        return repr(entry.get("use"))
    return repr(shown_handler(entry))


def shown_value(entry: HandlerEntry, key: str, value: object) -> str:
    """Return the value of a key in the form of error messages; it is hidden for users' handlers."""
    table = {"use": HandlerSpec.of(entry).use if isinstance(entry, str) else entry.get("use")}
    name = key.partition(".")[0]
    shown = shown_handler(table | {name: value})[name]
    return "" if value is None else f" {shown!r:.300}"


def load_handler(text: HandlerEntry) -> Any:
    """Return the handler of an entry, without its conditions.

    :raises HandlerError: it cannot be found, imported or constructed
    """
    return load_route(text).handler


def _route(spec: HandlerSpec, directory: Path | None) -> Route:
    handler = (_built_in if spec.is_built_in else _of_module)(spec, directory)
    name = _text("name", spec.route.get("name", spec.use if spec.is_built_in else ""))
    return Route(
        handler,
        recipients=_texts("for", spec.route.get("for", [])),
        copy=spec.route.get("copy", False),
        quarantine=spec.route.get("quarantine", False),
        when=spec.when or None,
        name=name,
    )


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise SettingError(key, value, "expected a string")
    return value


def _texts(key: str, value: Any) -> list[str]:
    several = value.split(",") if isinstance(value, str) else value
    if not isinstance(several, list) or not all(isinstance(each, str) for each in several):
        raise SettingError(key, value, "expected a list of strings")
    return [each.strip() for each in several]


def _check_limit(spec: HandlerSpec, route: Route, seconds: float) -> None:
    """Check that the time limit of a sink is shorter than that of its hook."""
    longest = sink_limit(seconds)
    if route.is_sink and "timeout" in spec.keys and route.own_limit > longest:
        reason = f"must be at most {longest:g}s: --handler-timeout is {seconds:g}s"
        raise SettingError("timeout", spec.keys["timeout"], reason)


BUILT_IN = {
    "accept": "smtpd_fork.filters.accept:Accept",
    "auth": "smtpd_fork.filters.auth:Auth",
    "debug": "smtpd_fork.sinks.debug:Debug",
    "discard": "smtpd_fork.sinks.base:Discard",
    "lmtp": "smtpd_fork.sinks.lmtp:Lmtp",
    "maildir": "smtpd_fork.sinks.maildir:Maildir",
    "mbox": "smtpd_fork.sinks.mbox:Mbox",
    "milter": "smtpd_fork.filters.milter:Milter",
    "nats": "smtpd_fork.sinks.nats:Nats",
    "pipe": "smtpd_fork.sinks.pipe:Pipe",
    "policy": "smtpd_fork.filters.policy:Policy",
    "redis": "smtpd_fork.sinks.redis:Redis",
    "relay": "smtpd_fork.sinks.relay:Relay",
    "rspamd": "smtpd_fork.filters.rspamd:Rspamd",
    "s3": "smtpd_fork.sinks.s3:S3",
    "webhook": "smtpd_fork.sinks.webhook:Webhook",
}
"""The built-in handlers; each is imported when it is used, as it may need libraries."""


def _built_in(spec: HandlerSpec, directory: Path | None) -> Any:
    module, _, attr = BUILT_IN[spec.use].partition(":")
    made_by = getattr(importlib.import_module(module), attr)
    parameters = Parameters(made_by, strict=True)
    keys = dict(spec.keys)
    if spec.arguments:
        if not parameters.keys:
            raise HandlerError(f"{spec.use} takes no argument")
        first = parameters.keys[0]
        if first in keys or len(spec.arguments) > 1:
            raise HandlerError(f"{spec.use} takes {first} once")
        if not spec.arguments[0]:
            raise HandlerError(f"{spec.use}: needs {first} after the colon")
        keys[first] = spec.arguments[0]
    values = parameters.values(keys, directory)
    parameters.check_complete(keys)
    try:
        return made_by(**values)
    except (
        ValueError,
        RuntimeError,
    ) as error:  # pathlib raises RuntimeError for ~USER of an unknown user
        raise HandlerError(str(error)) from None


def _of_module(spec: HandlerSpec, directory: Path | None) -> Any:
    name, colon, attr = spec.use.partition(":")
    if not colon:
        known = ", ".join(sorted(BUILT_IN))
        raise HandlerError(f"no such name ({known}), nor a module:attr")
    found = _find(name, attr)
    arguments, keys = list(spec.arguments), dict(spec.keys)
    parameters = Parameters(found, strict=False) if callable(found) else None
    if (
        parameters is not None
        and _is_filter_or_sink(found)
        and len(arguments) <= len(parameters.keys)
    ):
        keys |= _named(arguments, parameters.keys, keys)
        arguments = []
        parameters.check_complete(keys)
    elif parameters is not None and not spec.typed:
        # In text, KEY=VALUE with an unknown key has always been an argument.
        others = [key for key in keys if not parameters.has(key)]
        for key in others:
            arguments += f"{key}={keys.pop(key)}".split(",")
    values = parameters.values(keys, directory) if parameters is not None else keys
    return _make(found, arguments, values)


def _is_filter_or_sink(found: Any) -> bool:
    """Return whether it is a class of a sink or filter, with typed arguments and known keys."""
    is_class = inspect.isclass(found) and not hasattr(found, "from_cli")
    return is_class and issubclass(found, (Filter, Sink))


def _named(
    arguments: Sequence[Any], names: Sequence[str], keys: Collection[str]
) -> Mapping[str, Any]:
    """Return arguments as keys, by the order of the parameters."""
    named = dict(zip(names, arguments, strict=False))
    for name in named:
        if name in keys:
            raise HandlerError(f"takes {name} once")
    return named


def _find(module_name: str, attr: str) -> Any:
    """Import ``module:attr``, which may be in the current directory as with ``python -m``."""
    if not _DOTTED.fullmatch(module_name) or not _DOTTED.fullmatch(attr):
        near = get_close_matches(module_name, BUILT_IN, 1, ALIKE)
        rest = f":{attr}" if attr[:1] in {"/", ".", "~"} else ""  # other text may be a secret
        hint = f"; did you mean {near[0]}{rest}?" if near else ""
        raise HandlerError(f"not a module:attr{hint}")
    try:
        found: Any = import_here(module_name)
    except (Exception, SystemExit) as error:  # the import of a module may raise anything
        missing = isinstance(error, ModuleNotFoundError) and error.name == module_name
        near = get_close_matches(module_name, BUILT_IN, 1, ALIKE) if missing else []
        hint = f"; did you mean {near[0]}?" if near else ""
        reason = f"cannot import {module_name}: {_one_line(error)}{hint}"
        raise HandlerError(reason) from error
    try:
        return attrgetter(attr)(found)
    except AttributeError:
        raise HandlerError(f"{module_name} has no {attr}") from None


def _make(found: Any, arguments: list[str], keys: Mapping[str, Any]) -> Any:
    """Return an instance: *found* itself, or the result of calling it."""
    if inspect.isclass(found) or (callable(found) and not _is_handler(found)):
        handler = _call(found, arguments, keys)
    elif arguments or keys:
        raise HandlerError("an instance takes no arguments")
    else:
        handler = found
    if inspect.iscoroutine(handler):
        handler.close()
        raise HandlerError("coroutine is not a handler")
    if isinstance(handler, _PLAIN) or type(handler) in (list, tuple, dict):
        raise HandlerError(f"{type(handler).__name__} is not a handler")
    return handler


def _call(found: Callable[..., Any], arguments: list[str], keys: Mapping[str, Any]) -> Any:
    try:
        if inspect.isclass(found) and hasattr(found, "from_cli"):
            return found.from_cli(_Parser(prog="smtpd-fork", add_help=False), *arguments)
        return found(*arguments, **keys)
    except SettingError as error:
        reason = without_arguments(error.reason, _secrets(arguments, keys))
        raise SettingError(error.setting, error.value, reason) from error
    except (Exception, SystemExit) as error:  # a constructor may raise anything
        text = str(error) if isinstance(error, HandlerError) else _one_line(error)
        raise HandlerError(without_arguments(text, _secrets(arguments, keys))) from error


def _secrets(arguments: Iterable[str], keys: Mapping[str, Any]) -> str:
    return ",".join([*arguments, *(value for value in keys.values() if isinstance(value, str))])


def _is_handler(value: Any) -> bool:
    return any(name.startswith(("handle_", "auth_", "process_message")) for name in dir(value))


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _Parser(ArgumentParser):
    """The parser for ``from_cli``, which raises HandlerError."""

    def error(self, message: str) -> NoReturn:
        raise HandlerError(message)
