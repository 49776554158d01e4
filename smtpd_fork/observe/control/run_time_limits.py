"""RunTimeLimits: the gate's limits, changed while it runs, until the settings are read again."""

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
"""How long the lists of networks that a change names may take to be read."""

SETTABLE = sorted(GATE_SETTINGS - {"max_loop_lag"})
"""What can be changed: not the loop's lag, which is measured from the start or not at all."""

_FIELDS = {"rate": "rates", "rate_net": "rates", "allow": "access", "deny": "access"}
"""The gate's names for settings, where they are not the same; two may make one of the gate's."""

_FILES = ("allow", "deny", "exempt")


class Limited(Protocol):
    """What has a gate, and the settings that it began with."""

    gate: Gate

    @property
    def config(self) -> Config:
        """The settings in force."""


class RunTimeLimits:
    """The limits of a gate, as settings.

    What is changed holds as long as nobody else sets the gate's limits: a reload does.

    :param front: whose gate it is
    """

    def __init__(self, front: Limited) -> None:
        self._front = front
        self._ours: Limits | None = None
        self._changes: dict[str, Any] = {}

    @property
    def changes(self) -> dict[str, Any]:
        """The settings that were changed, and hold."""
        if self._ours is not self._front.gate.limits:
            self._ours, self._changes = None, {}
        return self._changes

    @property
    def settings(self) -> dict[str, Any]:
        """All settings of the gate, as they hold."""
        config = self._front.config
        return {**{name: getattr(config, name) for name in sorted(GATE_SETTINGS)}, **self.changes}

    async def change(self, given: Mapping[str, Sequence[str]]) -> str:
        """Have *given* hold; all of it, or nothing.

        What is not named keeps its state: counts, rates, and lists as they were read.

        :returns: a warning; empty if there is none
        :raises SettingError: a setting is unknown, or its value none
        """
        gate, config = self._front.gate, self._front.config
        before, settings = gate.limits, self.settings
        words = {name: _value(name, settings, value) for name, value in given.items()}
        wanted = Config.build({**settings, **words})
        fields = {_FIELDS.get(name, name) for name in given}
        # Files that nobody named are not read again: they may be in the middle of being written.
        unread = {n: () for n in _FILES if _FIELDS.get(n, n) not in fields}
        try:
            async with asyncio.timeout(READ_SECONDS):
                read = await asyncio.to_thread(limits_of, msgspec.structs.replace(wanted, **unread))
        except TimeoutError:
            raise SettingError("limits", list(given), "the lists take too long to read") from None
        if gate.limits is not before or self._front.config is not config:
            reason = "the limits were changed by somebody else meanwhile; look, and try again"
            raise SettingError("limits", list(given), reason)
        changed = {name: getattr(wanted, name) for name in given}
        limits = replace(before, **{field: getattr(read, field) for field in fields})
        gate.limits = self._ours = limits
        self._changes = settings_of({**self._changes, **changed}, config)
        return _descriptors(wanted.limit_connections)


def settings_of(changes: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Return *changes* that are not what *config* says anyway."""
    return {name: value for name, value in changes.items() if value != getattr(config, name)}


def _value(name: str, settings: Mapping[str, Any], words: Sequence[str]) -> Any:
    """Return what a setting is given, as an option would have it."""
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
