"""FleetAddress: the address of a fleet's Redis."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import SplitResult, unquote, urlsplit

from smtpd_fork.sanitizer import HIDDEN, hidden
from smtpd_fork.setting_types import SettingError

__all__ = ["FleetAddress"]

USE_FILE = "put the password into a file, and name that with fleet_secret"
USAGE = "write redis://HOST[:PORT], rediss://HOST, unix:PATH or sentinel://HOST,HOST/NAME"

PORT, SENTINEL_PORT = 6379, 26379


@dataclass(frozen=True, slots=True)
class FleetAddress:
    """The address of a fleet's Redis.

    :ivar url: the URL for redis-py; empty for Sentinel
    :ivar user: the user of the ACL; None: Redis's default user
    :ivar tls: whether TLS is used
    :ivar sentinels: host and port of each Sentinel
    :ivar name: the name of the primary that Sentinel monitors
    :ivar written: the address as it is written in the settings; it has no password
    """

    url: str
    written: str
    user: str | None = None
    tls: bool = False
    sentinels: tuple[tuple[str, int], ...] = ()
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``redis://[USER@]HOST[:PORT][/DB]``, ``rediss://``, ``unix:PATH`` or ``sentinel://``.

        :raises SettingError: *text* has another form, or contains a password
        """
        try:
            scheme, _, rest = text.partition(":")
            if scheme == "unix" and rest and not rest.startswith("//"):
                return cls(f"unix://{rest}", text)
            return cls._of_parts(text, urlsplit(text))
        except ValueError as error:
            # Python's own error text quotes a part of the address, perhaps of a password.
            reason = USE_FILE if str(error) == USE_FILE else USAGE
            shown = re.sub(r"(://[^:@]*):.*@", rf"\g<1>:{HIDDEN}@", hidden(text))
            raise SettingError("fleet", shown, reason) from None

    @classmethod
    def _of_parts(cls, text: str, parts: SplitResult) -> Self:
        if parts.password is not None:
            raise ValueError(USE_FILE)
        user = unquote(parts.username) if parts.username else None
        if parts.scheme == "sentinel":
            return cls._of_sentinels(text, user)
        if parts.scheme not in {"redis", "rediss"} or not parts.hostname:
            raise ValueError(USAGE)
        database = parts.path.strip("/") or "0"
        if parts.query or parts.fragment or not database.isdecimal():
            raise ValueError(USAGE)
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        url = f"{parts.scheme}://{host}:{parts.port or PORT}/{database}"
        return cls(url, text, user, tls=parts.scheme == "rediss")

    @classmethod
    def _of_sentinels(cls, text: str, user: str | None) -> Self:
        hosts, slash, name = text.removeprefix("sentinel://").rpartition("@")[2].partition("/")
        sentinels = []
        for host in hosts.split(","):
            parts = urlsplit(f"//{host}")
            if not parts.hostname:
                raise ValueError(USAGE)
            sentinels.append((parts.hostname, parts.port or SENTINEL_PORT))
        if not slash or not name or "/" in name:
            raise ValueError(USAGE)
        return cls("", text, user, sentinels=tuple(sentinels), name=name)

    def __str__(self) -> str:
        return self.written
