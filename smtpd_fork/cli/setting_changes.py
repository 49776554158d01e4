"""The lines that report changed settings: changes by a reload, and changes that need a restart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smtpd_fork.cli.show_config import toml
from smtpd_fork.config import Config, DaemonConfig
from smtpd_fork.sanitizer import printable, shown_handler
from smtpd_fork.server.setting_changes import MAX_VALUE_LENGTH, NEED_RESTART, change_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from smtpd_fork.handlers.spec import HandlerEntry

__all__ = ["daemon_changes", "restart_lines"]

RELOADABLE = {*Config.__struct_fields__, "handler", "log_level"} - NEED_RESTART
"""Settings that a reload can change; the others need a restart."""


LISTENER_SETTINGS = frozenset({"listen", "port", "backlog", "socket_mode"})
"""Settings of the listeners. With --processes the supervisor holds the sockets, so that only an
upgrade or a restart changes these settings."""


def daemon_changes(before: DaemonConfig, after: DaemonConfig) -> Iterator[str]:
    """Yield a line for each change of the daemon's own settings by a reload."""
    if before.handler != after.handler:
        yield from _handler_changes(before.handler, after.handler)
    if before.log_level != after.log_level:
        yield change_line("log_level", before.log_level, after.log_level)


def _handler_changes(
    before: Sequence[HandlerEntry], after: Sequence[HandlerEntry]
) -> Iterator[str]:
    """Yield a line for each changed key of a handler's table, or one line with all handlers."""
    tables = [
        (number, old, new)
        for number, (old, new) in enumerate(zip(before, after, strict=False), 1)
        if old != new
    ]
    if len(before) == len(after) and all(
        isinstance(old, dict) and isinstance(new, dict) and old.get("use") == new.get("use")
        for _, old, new in tables
    ):
        for number, old, new in tables:
            yield from _key_changes(f"handler {number} ({old['use']})", old, new)  # type: ignore[index, arg-type] # tables
        return
    old_text, new_text = (
        printable(" ".join(map(_shown, each)), MAX_VALUE_LENGTH) for each in (before, after)
    )
    changed = old_text != new_text
    yield f"handler {old_text} -> {new_text}" if changed else "handler arguments changed"


def _key_changes(name: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    shown_old, shown_new = shown_handler(old), shown_handler(new)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            values = [toml(each[key]) if key in each else "none" for each in (shown_old, shown_new)]
            texts = [printable(value, MAX_VALUE_LENGTH) for value in values]
            change = f" {texts[0]} -> {texts[1]}" if texts[0] != texts[1] else " has changed"
            yield f"{name}: {key}{change}"


def _shown(entry: HandlerEntry) -> str:
    shown = shown_handler(entry)
    return shown if isinstance(shown, str) else toml(shown)


def restart_lines(before: DaemonConfig, after: DaemonConfig) -> list[str]:
    """Return a line for each changed setting that needs a restart."""
    bound = LISTENER_SETTINGS if before.processes > 1 else frozenset()
    return [
        f"{change_line(name, old, new)} needs a restart"
        for name in DaemonConfig.__struct_fields__
        if (name not in RELOADABLE or name in bound)
        and (old := getattr(before, name)) != (new := getattr(after, name))
    ]
