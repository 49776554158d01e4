"""The arguments of Server: the type of each, and those that exclude each other."""

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

_MADE_BY = {"config": "Config.build({...})", "gate": "Gate(...)", "limits": "Limits(...)"}
"""How to make one of settings by name."""


def check_arguments(options: Mapping[str, Any], **arguments: object) -> None:
    """See that each argument has its type, and that they go together.

    :param options: settings by name
    :param arguments: the others, by name; None is the default of each
    :raises TypeError: one has another type, or two exclude each other
    """
    for name, value in arguments.items():
        if value is not None and not isinstance(value, _TYPES[name]):
            hint = f"; {_MADE_BY[name]} makes one of settings" if name in _MADE_BY else ""
            wanted = _TYPES[name].__name__
            raise TypeError(f"{name} must be a {wanted}, not {type(value).__name__}{hint}")
    if arguments.get("config") is not None and options:
        raise TypeError(f"either config or options, not both: {', '.join(options)}")
    if arguments.get("gate") is not None and (both := GATE_SETTINGS & options.keys()):
        raise TypeError(f"the gate has its own {' and '.join(sorted(both))}")


def grace_period(timeout: float | None, default: float) -> float:
    """Return the seconds that a stop may take.

    :param timeout: the argument of ``stop()``
    :raises TypeError: it is no number
    """
    if timeout is None:
        return default
    if not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds, not {type(timeout).__name__}")
    return timeout
