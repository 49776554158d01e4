"""Setting changes: describes the changes of a reload, one line per setting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from smtpd_fork.config import Config
from smtpd_fork.gate import GATE_SETTINGS
from smtpd_fork.sanitizer import hidden, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from smtpd_fork.gate import Limits, TrustedHosts
    from smtpd_fork.gate.rules import NetworkList
    from smtpd_fork.server.effective_settings import EffectiveSettings
    from smtpd_fork.server.tls import Certificate

__all__ = ["NEED_RESTART", "Snapshot", "change_line", "changes_between", "shown_value"]

MAX_ENTRIES_SHOWN = 3
"""Maximum number of changed entries of a list that are shown; of more, only their number."""

MAX_VALUE_LENGTH = 100
"""Maximum characters of a value that are shown."""


NEED_RESTART = frozenset({"fleet", "fleet_secret", "fleet_tls_ca", "fleet_prefix", "fleet_node"})
"""Settings that a reload does not change: a node keeps its fleet and its name."""


class Snapshot(NamedTuple):
    """The settings in force at one time.

    :ivar settings: the settings, with the networks of their files
    :ivar limits: limits of the gate, which may have been changed at run time
    :ivar certificates: certificates for new handshakes
    """

    settings: EffectiveSettings
    limits: Limits
    certificates: Sequence[Certificate]

    def networks(self, name: str) -> NetworkList | None:
        """Return the networks of the setting *name*; None if it has none."""
        if name == "probe_from":
            return self.settings.probe_from
        if name in {"proxy_trust", "xclient_trust", "xforward_trust"}:
            trusted: TrustedHosts = getattr(self.settings, name)
            return trusted.networks
        return getattr(self.limits, name) if name in {"allow", "deny", "exempt"} else None


def changes_between(before: Snapshot, after: Snapshot) -> list[str]:
    """Return a line for each changed setting; blocks, for a while if there are many networks."""
    lines: list[str] = []
    for name in (each for each in Config.__struct_fields__ if each not in NEED_RESTART):
        lines += _changes(name, before, after)
    same_files = before.settings.config.tls_cert == after.settings.config.tls_cert
    if same_files and _validity(before) != _validity(after):
        lines.append("tls_cert: certificates renewed")
    return lines


def change_line(name: str, old: Any, new: Any) -> str:
    """Return the line for a changed setting: ``max_from_ip 2 -> 3``, ``deny +192.0.2.1``."""
    if isinstance(new, tuple):
        return f"{name} {_entries(old, new)}"
    return f"{name} {shown_value(name, old)} -> {shown_value(name, new)}"


def _changes(name: str, before: Snapshot, after: Snapshot) -> Iterator[str]:
    """Yield the line for the setting *name*, if it has changed."""
    old, new = (getattr(each.settings.config, name) for each in (before, after))
    if name in GATE_SETTINGS and not isinstance(old, tuple) and name != "tls_failure_rate":
        old = getattr(before.limits, name)  # it may have been changed at run time
    if old != new:
        yield change_line(name, old, new)
    elif (tables := [each.networks(name) for each in (before, after)]) != [None, None]:
        old_nets, new_nets = (_written(table) for table in tables)
        if old_nets != new_nets:
            yield f"{name} +{len(new_nets - old_nets)} -{len(old_nets - new_nets)} networks"
    elif name in GATE_SETTINGS and getattr(before.limits, name) != getattr(after.limits, name):
        yield f"{name} set at run time -> {shown_value(name, new)}"


def _written(table: NetworkList | None) -> set[tuple[str, str]]:
    return set() if table is None else {(each.written, each.text) for each in table.values()}


def _validity(of: Snapshot) -> list[tuple[str, Any, Any]]:
    return [(str(each.path), each.not_before, each.not_after) for each in of.certificates]


def _entries(old: tuple[Any, ...], new: tuple[Any, ...]) -> str:
    """Return the entries added and removed: ``+192.0.2.1 -192.0.2.2``."""
    added = [each for each in new if each not in old]
    removed = [each for each in old if each not in new]
    if not added and not removed:
        return "order changed"
    if len(added) + len(removed) > MAX_ENTRIES_SHOWN:
        return f"{len(added)} added, {len(removed)} removed"
    named = [f"+{_cut(hidden(str(each)))}" for each in added]
    return " ".join(named + [f"-{_cut(hidden(str(each)))}" for each in removed])


def shown_value(name: str, value: Any) -> str:
    """Return the value of a setting as text, without secrets and of limited length."""
    if value is None or value in {(), ""}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return _cut(hidden(" ".join(map(str, value))))
    if name == "socket_mode":
        return f"{value:04o}"
    return f"{value:g}" if isinstance(value, float) else _cut(hidden(str(value)))


def _cut(text: str) -> str:
    return printable(text, MAX_VALUE_LENGTH)
