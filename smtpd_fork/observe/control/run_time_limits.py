"""RunTimeLimits: limits of the gate that are changed at run time, until the next reload."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from smtpd_fork.config import RESERVED_DESCRIPTORS, Config, SettingError
from smtpd_fork.daemon import raise_descriptor_limit
from smtpd_fork.gate import GATE_SETTINGS, Gate, limits_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smtpd_fork.gate import Limits

__all__ = ["RunTimeLimits"]

READ_SECONDS = 10.0
"""Time for reading the files of networks that a change names."""

SETTABLE = sorted(GATE_SETTINGS - {"max_loop_lag"})
"""Settings that can be changed; event-loop lag is measured from the start or not at all."""

_FIELDS = {"rate": "rates", "rate_net": "rates", "allow": "access", "deny": "access"}
"""The gate's names of settings, where they differ; two settings may make one limit."""

_FILES = ("allow", "deny", "exempt")


class Limited(Protocol):
    """A server, as far as its limits go."""

    gate: Gate

    @property
    def config(self) -> Config:
        """The settings in force."""


class RunTimeLimits:
    """The limits of a gate, as settings.

    A change holds until something else sets the gate's limits, as a reload does.

    :param server: has the gate
    """

    def __init__(self, server: Limited) -> None:
        self._server = server
        self._ours: Limits | None = None
        self._changes: dict[str, Any] = {}

    @property
    def changes(self) -> dict[str, Any]:
        """The settings that were changed, and are in force."""
        if self._ours is not self._server.gate.limits:
            self._ours, self._changes = None, {}
        return self._changes

    @property
    def settings(self) -> dict[str, Any]:
        """All settings of the gate, as they are in force."""
        config = self._server.config
        return {**{name: getattr(config, name) for name in sorted(GATE_SETTINGS)}, **self.changes}

    async def change(self, given: Mapping[str, Sequence[str]]) -> str:
        """Put *given* in force; all of it, or nothing.

        Other settings keep their state: counts, rates, and lists as they were read.

        :returns: a warning; empty if there is none
        :raises SettingError: a setting is unknown, or its value cannot be read
        """
        gate, config = self._server.gate, self._server.config
        before, settings = gate.limits, self.settings
        words = {name: _value(name, settings, value) for name, value in given.items()}
        wanted = Config.build({**settings, **words})
        fields = {_FIELDS.get(name, name) for name in given}
        # Files that are not named are not read again: somebody may be writing them.
        unread = {n: () for n in _FILES if _FIELDS.get(n, n) not in fields}
        try:
            async with asyncio.timeout(READ_SECONDS):
                read = await asyncio.to_thread(limits_of, msgspec.structs.replace(wanted, **unread))
        except TimeoutError:
            raise SettingError("limits", list(given), "the lists take too long to read") from None
        if gate.limits is not before or self._server.config is not config:
            reason = "the limits were changed by somebody else meanwhile; look, and try again"
            raise SettingError("limits", list(given), reason)
        changed = {name: getattr(wanted, name) for name in given}
        limits = replace(before, **{field: getattr(read, field) for field in fields})
        gate.limits = self._ours = limits
        self._changes = settings_of({**self._changes, **changed}, config)
        return _descriptors(wanted.limit_connections)


def settings_of(changes: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Return those of *changes* that differ from *config*."""
    return {name: value for name, value in changes.items() if value != getattr(config, name)}


def _value(name: str, settings: Mapping[str, Any], words: Sequence[str]) -> Any:
    """Return the value of a setting as its option would have it."""
    if name not in SETTABLE:
        reason = f"no limit that can be changed at run time; those are {', '.join(SETTABLE)}"
        raise SettingError(name, " ".join(words), reason)
    if isinstance(settings[name], tuple):
        return tuple(words)
    if len(words) != 1:
        raise SettingError(name, " ".join(words), "one value is expected")
    return words[0]


def _descriptors(limit_connections: int) -> str:
    wanted = limit_connections + RESERVED_DESCRIPTORS
    allowed = raise_descriptor_limit(wanted)
    if allowed >= wanted:
        return ""
    return (
        f"{limit_connections} sessions need {wanted} open files, and the system allows {allowed} "
        "(RLIMIT_NOFILE)"
    )
