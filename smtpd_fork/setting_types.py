"""The types of settings: their ranges, the functions that parse text, and the error classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeAlias

from msgspec import Meta

from smtpd_fork.errors import UsageError
from smtpd_fork.units import parse_duration, parse_mode, parse_size

__all__ = [
    "LONGEST_DELAY", "LONGEST_SECONDS", "Count", "CountOrZero", "Delay", "FilePath", "GreetPause",
    "LocalCount", "MissingSettingError", "Mode", "Port", "Seconds", "SecondsOrZero", "Secret",
    "SettingError", "Size", "Text", "ValueOrFile", "WhenFull", "first_local", "names_a_file",
    "without_local",
]  # fmt: skip

LONGEST_SECONDS = 7 * 86400.0
"""The maximum of any time limit; a longer one is probably a typing error."""

LONGEST_GREET_PAUSE = 240.0
"""Seconds. Clients wait five minutes for the greeting (RFC 5321 4.5.3.2.1); one minute is spare."""


LONGEST_DELAY = 60.0
"""Seconds that a reply is delayed. The shortest timeout of clients is two minutes (RFC 5321
4.5.3.2.4, the reply to DATA)."""


class SettingError(UsageError):
    """A setting is unknown, cannot be read or is out of its range (64).

    :ivar setting: its name
    :ivar value: its value
    :ivar reason: why the value is invalid
    """

    def __init__(self, setting: str, value: object, reason: str) -> None:
        super().__init__(f"{setting} {value!r}: {reason}")
        self.setting = setting
        self.value = value
        self.reason = reason


class MissingSettingError(SettingError):
    """A setting was set without another setting that it requires (64).

    :param needed: the required setting
    """

    def __init__(self, setting: str, value: object, needed: str) -> None:
        super().__init__(setting, value, f"needs {needed}")
        self.needed = needed


@dataclass(frozen=True, slots=True)
class WhenFull:
    """How new clients are handled while all connection slots are in use.

    :ivar refuse: they get 421 at once
    :ivar wait: without ``refuse``: seconds after which a waiting client gets 421; None: never
    """

    refuse: bool = False
    wait: float | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``defer``, ``refuse`` or ``defer:SECONDS``.

        :raises ValueError: *text* is none of them
        """
        if text == "refuse":
            return cls(refuse=True)
        word, colon, seconds = text.partition(":")
        if word != "defer":
            raise ValueError("expected defer, refuse or defer:SECONDS")
        if not colon:
            return cls()
        wait = parse_duration(seconds)
        if not 0 < wait <= LONGEST_SECONDS:
            raise ValueError("the seconds after defer: must be more than 0")
        return cls(wait=wait)

    def __str__(self) -> str:
        if self.refuse:
            return "refuse"
        return "defer" if self.wait is None else f"defer:{self.wait:g}"


LOCAL = "local:"
"""The prefix of a limit that applies to one node, and is not shared with its fleet."""


def without_local(text: str) -> tuple[str, bool]:
    """Return a limit without the prefix ``local:``, and whether it had the prefix."""
    return text.removeprefix(LOCAL), text.startswith(LOCAL)


class LocalCount(int):
    """A limit that is not shared with a fleet, written ``local:N``."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalCount) and int(self) == int(other)

    def __hash__(self) -> int:
        return hash((LOCAL, int(self)))

    def __str__(self) -> str:
        return f"{LOCAL}{int(self)}"


def names_a_file(text: str) -> bool:
    """Return whether a text is the path of a file with values, and not a domain or a network.

    A path has a slash, does not begin with a digit (``10.0.0.0/8``) and has no colon
    (``2001:db8::/32``).
    """
    return "/" in text and not text[0].isdigit() and ":" not in text


_DURATION = {"reader": parse_duration}
"""For ``Meta.extra``: the function that parses the text of the setting, with a unit or a word."""

Port: TypeAlias = Annotated[int, Meta(ge=0, le=65535)]
Count: TypeAlias = Annotated[int, Meta(ge=1, le=1_000_000)]
CountOrZero: TypeAlias = Annotated[int, Meta(ge=0, le=1_000_000)]
Text: TypeAlias = Annotated[str, Meta(min_length=1)]
Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=LONGEST_SECONDS, extra=_DURATION)]
SecondsOrZero: TypeAlias = Annotated[float, Meta(ge=0, le=LONGEST_SECONDS, extra=_DURATION)]
GreetPause: TypeAlias = Annotated[float, Meta(ge=0, le=LONGEST_GREET_PAUSE, extra=_DURATION)]
Delay: TypeAlias = Annotated[float, Meta(ge=0, le=LONGEST_DELAY, extra=_DURATION)]
Size: TypeAlias = Annotated[int, Meta(ge=0, extra={"reader": parse_size})]
FilePath: TypeAlias = Annotated[str, Meta(min_length=1, extra={"path": True})]
"""Relative paths are relative to the directory that the daemon was started in."""
ValueOrFile: TypeAlias = Annotated[str, Meta(min_length=1, extra={"path": names_a_file})]
"""A value, or a file of values; see :func:`names_a_file`."""
Secret: TypeAlias = Annotated[str, Meta(min_length=1, extra={"secret": True})]
"""A password or a key; no log, message or output shows it."""
Mode: TypeAlias = Annotated[int, Meta(ge=0, le=0o777, extra={"reader": parse_mode})]


def first_local(settings: Any) -> tuple[str, str] | None:
    """Return name and value of the first limit of *settings* with ``local:``; None without any."""
    if isinstance(limit := settings.max_from_ip, LocalCount):
        return "max_from_ip", str(limit)
    for name in ("max_from_net", "rate", "rate_net"):
        for value in getattr(settings, name):
            if without_local(value)[1]:
                return name, value
    return None
