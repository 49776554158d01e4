"""The arguments of Server: checks of their types, and of arguments that exclude each other."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

from smtpd_fork.config import Config
from smtpd_fork.dialogue import Tally
from smtpd_fork.gate import GATE_SETTINGS, Gate, Limits

__all__ = ["check_arguments", "grace_period"]

_TYPES = {
    "config": Config,
    "gate": Gate,
    "limits": Limits,
    "tls_context": ssl.SSLContext,
    "tally": Tally,
}

_CONSTRUCTORS = {"config": "Config.build({...})", "gate": "Gate(...)", "limits": "Limits(...)"}
"""For error messages: the expression that creates such an object from settings by name."""


def check_arguments(options: Mapping[str, Any], **arguments: object) -> None:
    """Check the type of each argument, and that no two arguments exclude each other.

    :param options: settings by name
    :param arguments: the other arguments by name; the default of each is None
    :raises TypeError: an argument has another type, or two exclude each other
    """
    for name, value in arguments.items():
        if value is not None and not isinstance(value, _TYPES[name]):
            hint = f"; use {_CONSTRUCTORS[name]}" if name in _CONSTRUCTORS else ""
            wanted = _TYPES[name].__name__
            raise TypeError(f"{name} must be a {wanted}, not {type(value).__name__}{hint}")
    if arguments.get("config") is not None and options:
        raise TypeError(f"give either config or options, not both: {', '.join(options)}")
    if arguments.get("gate") is not None and (both := GATE_SETTINGS & options.keys()):
        raise TypeError(f"the gate has its own {' and '.join(sorted(both))}")


def grace_period(timeout: float | None, default: float) -> float:
    """Return the time limit of a stop, in seconds.

    :param timeout: the argument of ``stop()``
    :raises TypeError: it is not a number
    """
    if timeout is None:
        return default
    if not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds, not {type(timeout).__name__}")
    return timeout
