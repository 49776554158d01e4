"""allow, deny: the allowlist and the denylist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from smtpd_fork.gate.networks import Network, NetworkTable
from smtpd_fork.gate.rules.base import Counts, Rule
from smtpd_fork.gate.verdict import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from smtpd_fork.gate.client import Client
    from smtpd_fork.gate.denials import Denials

__all__ = [
    "LONGEST_TEXT", "AccessRule", "ListEntry", "NetworkList", "printable_text", "read_networks",
]  # fmt: skip

_UNPRINTABLE = re.compile(r"[^ -~]")

LONGEST_TEXT = 200
"""Maximum length of the text of a list in a reply, in characters."""


class ListEntry(NamedTuple):
    """One entry of a list.

    :ivar network: its addresses
    :ivar written: the network as it was written
    :ivar text: of the reply; may be empty
    :ivar file: the file that contains it; empty for a value of the option
    :ivar line: the number of its line in the file
    """

    network: Network
    written: str
    text: str = ""
    file: str = ""
    line: int = 0


NetworkList: TypeAlias = NetworkTable[ListEntry]


def read_networks(entries: Iterable[str]) -> Iterator[ListEntry]:
    """Read networks, and files with one ``CIDR [text]`` per line, where ``#`` begins a comment.

    An entry that is not a network is the path of a file.

    :raises ValueError: a line is not a network; the text names file, line and value
    :raises OSError: a file cannot be read
    """
    for entry in entries:
        try:
            yield ListEntry(Network.parse(entry), entry)
        except ValueError:
            if _is_file_name(entry):
                there = Path(entry).is_file()
                reason = "not a network" if there else "no such file and not a network"
                raise ValueError(f"{reason}: write ./{entry} for a file") from None
            if not _is_path(entry):
                raise
            yield from _read_file(entry)


def _is_path(entry: str) -> bool:
    return "/" in entry and not entry[:1].isdigit() and "::" not in entry


def _is_file_name(entry: str) -> bool:
    """Return whether *entry* looks like the name of a file, without a directory."""
    return entry[:1].isalpha() and not set(entry) & {"/", ":"}


def _read_file(name: str) -> Iterator[ListEntry]:
    if Path(name).exists() and not Path(name).is_file():
        raise ValueError(f"{name} is not a regular file")  # a pipe may have no end
    with Path(name).open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            written, _, text = line.partition("#")[0].strip().partition(" ")
            if not written:
                continue
            try:
                network = Network.parse(written)
            except ValueError as error:
                raise ValueError(f"{name}, line {number}: {written!r}: {error}") from None
            yield ListEntry(network, written, printable_text(text)[:LONGEST_TEXT], name, number)


def printable_text(text: str) -> str:
    """Return *text* as one line of printable ASCII, for a reply."""
    return _UNPRINTABLE.sub("?", text.strip())


class AccessRule(Rule):
    """Refuses denied clients permanently (554).

    The smallest listed network that contains the address decides. If the same network is allowed
    and denied, it is denied.

    :param allow: the allowlist; None: empty
    :param deny: the denylist; None: empty
    :param denials: the networks that are denied at run time
    """

    name = "deny"
    skips_exempt = False  # a client that is exempt from limits may still be denied
    address_only = True

    def __init__(
        self, allow: NetworkList | None, deny: NetworkList | None, denials: Denials
    ) -> None:
        self._allow = allow
        self._deny = deny
        self._denials = denials

    def judge(self, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Refuse a client that is denied."""
        allowed = _prefix(None if self._allow is None else self._allow.find(client.number))
        entry = None if self._deny is None else self._deny.find(client.number)
        denial = self._denials.find(client.number)
        if denial is not None and denial.network.prefix >= max(allowed, _prefix(entry)):
            cure = f"smtpd-fork undeny {denial.written}"
            return self._refusal(denial.written, denial.text, denial.origin, cure)
        if entry is None or entry.network.prefix < allowed:
            return None
        origin = f"{entry.file}, line {entry.line}" if entry.file else f"--deny {entry.written}"
        return self._refusal(entry.written, entry.text, origin)

    def _refusal(self, key: str, text: str, origin: str, cure: str = "") -> Refusal:
        return Refusal(
            *(self.name, key, 1, 0),
            code=554,
            status="5.7.1",
            text=text or "Access denied",
            origin=origin,
            cure=cure,
        )


def _prefix(entry: ListEntry | None) -> int:
    """Return the length of a network's prefix; -1, which is less than any, without a network."""
    return -1 if entry is None else entry.network.prefix
