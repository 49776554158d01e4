"""Relative paths in settings, resolved against the directory of the start.

A detached daemon works in ``/``. What it read at the start is open or absolute; a reload reads
paths that were written for the directory of the start.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["resolve_paths"]

_FILE = re.compile(r"()(.+)")
_LIST = re.compile(r"()((?!\d)(?!.*::).*/.*)")
"""A file among networks: it has a slash, and begins or goes on as no network does."""
_LOG = re.compile(r"()((?!(?:stderr|stdout|syslog|journald)$).+)")
_UNIX = re.compile(r"((?:[a-z+-]+:)?unix:)(.+)")
_MAILDIR = re.compile(r"(maildir:)((?!~).+)")

_PATHS = {
    **dict.fromkeys(("tls_cert", "tls_key", "tls_client_ca", "pid_file", "control"), _FILE),
    **dict.fromkeys(("allow", "deny", "exempt", "proxy_trust", "probe_from"), _LIST),
    **dict.fromkeys(("listen", "metrics"), _UNIX),
    "handler": _MAILDIR,
    "log_to": _LOG,
}
"""Settings that are paths, or may be: what stands before the path, and the path."""


def resolve_paths(setting: str, value: Any, folder: Path) -> Any:
    """Return a setting's value with relative paths in it as paths in *folder*."""
    if isinstance(value, (list, tuple)):
        return [resolve_paths(setting, each, folder) for each in value]
    pattern = _PATHS.get(setting)
    if pattern is None or not isinstance(value, str):
        return value
    if setting == "handler" and value == "maildir":
        value = "maildir:Maildir"
    found = pattern.fullmatch(value)
    return value if found is None else f"{found[1]}{folder / found[2]}"
