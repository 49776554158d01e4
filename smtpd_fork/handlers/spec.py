"""HandlerSpec: the configuration of a handler, in one form for text and for tables.

The text of ``--handler`` is ``NAME``, ``NAME:ARGUMENT`` or ``NAME:ARGUMENT,KEY=VALUE,...``; the
table ``[[handler]]`` has ``use = "NAME"`` and the same keys. NAME is that of a built-in handler, or
``module:attr``. The keys are the parameters of the class or function, with ``-`` for ``_``; their
annotations are the types, and ARGUMENT is the first parameter. ``for``, ``copy``, ``quarantine``,
``when`` and ``name`` are keys of the chain (:class:`smtpd_fork.handlers.route.Route`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

from smtpd_fork.sanitizer import BUILT_IN_NAMES, KEY_FOLLOWS
from smtpd_fork.setting_types import SettingError

__all__ = ["ROUTE_KEYS", "HandlerEntry", "HandlerSpec"]

HandlerEntry: TypeAlias = str | dict[str, Any]
"""A value of the setting ``handler``: text, or a table."""

ROUTE_KEYS = ("for", "copy", "quarantine", "name")
"""Keys that the chain reads for any handler, besides ``when``."""

_FIRST = re.compile(r"([^:,]*)([:,]?)(.*)", re.DOTALL)
"""The name, and the text after a colon or a comma."""

_KEY = re.compile(r"([a-z][a-z0-9_-]*(?:\.[a-z][a-z0-9_-]*)?)=(.*)", re.DOTALL)


@dataclass
class HandlerSpec:
    """A handler: its name, its arguments and its keys.

    :ivar use: the name of a built-in handler, or ``module:attr``
    :ivar arguments: arguments without a key; a built-in handler has at most one
    :ivar keys: values by key, as written: text, or a value of TOML
    :ivar route: values of the keys of the chain
    :ivar when: the conditions
    :ivar typed: whether it was a table
    """

    use: str
    arguments: list[str] = field(default_factory=list)
    keys: dict[str, Any] = field(default_factory=dict)
    route: dict[str, Any] = field(default_factory=dict)
    when: dict[str, Any] = field(default_factory=dict)
    typed: bool = False

    @classmethod
    def of(cls, entry: HandlerEntry) -> Self:
        """Parse an entry.

        :raises SettingError: it has no name, or a repeated key
        """
        return cls._of_table(entry) if isinstance(entry, dict) else cls._of_text(entry)

    @property
    def is_built_in(self) -> bool:
        """Whether it is a handler of this package."""
        return self.use in BUILT_IN_NAMES

    @classmethod
    def _of_text(cls, text: str) -> Self:
        name, follows, rest = _FIRST.fullmatch(text).groups()  # type: ignore[union-attr] # any text
        if name in BUILT_IN_NAMES:
            spec = cls(name)
            parts = KEY_FOLLOWS.split(rest) if follows else []
            if parts and follows == ":" and not _KEY.fullmatch(parts[0]):
                spec.arguments = [parts.pop(0)]
        else:
            attr, colon, arguments = _FIRST.fullmatch(rest).groups()  # type: ignore[union-attr] # see above
            spec = cls(f"{name}{follows}{attr}")
            parts = KEY_FOLLOWS.split(arguments) if colon and arguments else []
            if parts and not _KEY.fullmatch(parts[0]):
                spec.arguments = parts.pop(0).split(",")
        for part in parts:
            spec._add_text(part)
        return spec

    def _add_text(self, part: str) -> None:
        found = _KEY.fullmatch(part)
        if found is None:
            self.arguments += part.split(",")
            return
        key, value = found[1].replace("_", "-"), found[2]
        first, dot, condition = key.partition(".")
        if dot and first != "when":
            self.arguments += part.split(",")
            return
        where = self.when if dot else self.route if key in ROUTE_KEYS else self.keys
        name = condition if dot else key
        where[name] = f"{where[name]},{value}" if name in where else value

    @classmethod
    def _of_table(cls, table: Mapping[str, Any]) -> Self:
        left = dict(table)
        use = left.pop("use", None)
        if not isinstance(use, str) or not use:
            raise SettingError("use", use, "expected the name of a handler, or module:attr")
        when = left.pop("when", {})
        if not isinstance(when, dict):
            raise SettingError("when", when, "expected a table")
        spec = cls(use, when=when, typed=True)
        spec.arguments = _arguments(left)
        for key, value in left.items():
            name = key.replace("_", "-")
            (spec.route if name in ROUTE_KEYS else spec.keys)[name] = value
        return spec


def _arguments(table: dict[str, Any]) -> list[str]:
    """Remove the arguments without a key from a table, and return them."""
    one, several = table.pop("argument", None), table.pop("arguments", None)
    if several is None:
        several = [] if one is None else [one]
    elif one is not None:
        raise SettingError("arguments", several, "expected either argument or arguments")
    if not isinstance(several, list) or not all(isinstance(each, str) for each in several):
        raise SettingError("arguments", several, "expected strings")
    return several
