"""allow, deny: the allowlist and the denylist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from smtpd_fork.gate.networks import Network, NetworkTable
from smtpd_fork.gate.rules.base import Counts, Rule
from smtpd_fork.gate.verdict import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from smtpd_fork.gate.client import Client

__all__ = ["AccessList", "AccessRule", "read_networks"]

_UNPRINTABLE = re.compile(r"[^ -~]")

LONGEST_TEXT = 200
"""Characters of a list's own text that a reply has room for."""


class Listed(NamedTuple):
    """What a list says of a network."""

    denied: bool
    network: str
    text: str


def read_networks(entries: Iterable[str]) -> Iterator[tuple[Network, str, str]]:
    """Read networks, and files of them: ``CIDR [text]`` a line, ``#`` begins a comment.

    What is no network is the path of a file.

    :returns: for each network: it, as it was written, and its text
    :raises ValueError: a line is no network; names file, line and value
    :raises OSError: a file cannot be read
    """
    for entry in entries:
        try:
            yield Network.parse(entry), entry, ""
        except ValueError:
            if not _is_path(entry):
                raise
            yield from _read_file(entry)


def _is_path(entry: str) -> bool:
    return "/" in entry and not entry[:1].isdigit() and "::" not in entry


def _read_file(name: str) -> Iterator[tuple[Network, str, str]]:
    if Path(name).exists() and not Path(name).is_file():
        raise ValueError(f"{name} is no regular file")  # a pipe would be read for ever
    with Path(name).open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            written, _, text = line.partition("#")[0].strip().partition(" ")
            if not written:
                continue
            try:
                network = Network.parse(written)
            except ValueError as error:
                raise ValueError(f"{name} line {number}: {written!r}: {error}") from None
            yield network, written, _UNPRINTABLE.sub("?", text.strip())


class AccessList:
    """The allowlist and the denylist; the smallest network around an address decides.

    :param allow: networks, as :func:`read_networks` returns them
    :param deny: the same; where both have the same network, it is denied
    """

    def __init__(
        self, allow: Iterable[tuple[Network, str, str]], deny: Iterable[tuple[Network, str, str]]
    ) -> None:
        entries = [
            (network, Listed(denied, written, text[:LONGEST_TEXT]))
            for denied, networks in ((False, allow), (True, deny))
            for network, written, text in networks
        ]
        self._table = NetworkTable(entries)

    def __len__(self) -> int:
        return len(self._table)

    def find(self, number: int | None) -> Listed | None:
        """Return what the lists say of an address."""
        return self._table.find(number)


class AccessRule(Rule):
    """Refuses denied clients, for good.

    :param listed: the lists
    """

    name = "deny"
    about_sources = False  # to be exempt from limits is not to be allowed
    about_address = True

    def __init__(self, listed: AccessList) -> None:
        self._list = listed

    def judge(self, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Refuse a client that is denied."""
        found = self._list.find(client.number)
        if found is None or not found.denied:
            return None
        return Refusal(
            self.name,
            found.network,
            1,
            0,
            code=554,
            status="5.7.1",
            text=found.text or "Access denied",
        )
