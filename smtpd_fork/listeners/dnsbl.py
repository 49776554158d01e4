"""DNSBL: parses the setting of DNS blocklists (RFC 5782), and interprets their answers.

::

    ZONE[=CODES][=WEIGHT]    zen.example.org    dul.example.org=2    zen.example.org=127.0.0.[2..11]

CODES are the answers that count, in the syntax of Postfix's ``postscreen_dnsbl_sites``: four
octets, each a number, or numbers and ranges in brackets: ``127.0.0.[2;4..7]``. Without CODES every
answer in 127.0.0.0/8 counts unless it reports an error of the list. No I/O.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, NamedTuple

from smtpd_fork.config import SettingError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = ["Codes", "Entry", "Listing", "error_of", "listing_of", "read_entries"]

MAX_ZONE_LENGTH = 180
"""Characters: a reversed IPv6 address needs 64 more of the maximum length of a DNS name."""

MAX_CODES_SHOWN = 8
"""Maximum of one zone's codes in the log and in the reply: a zone may answer with any number."""

LISTED = IPv4Network("127.0.0.0/8")
"""The network of all answers (RFC 5782 2.1); an abandoned zone may answer with other addresses."""

ERRORS = IPv4Network("127.255.255.0/24")
"""The network of answers that report errors: a convention of Spamhaus that other lists follow."""

_MEANINGS = {
    IPv4Address("127.0.0.1"): "the list refuses this resolver's queries",
    IPv4Address("127.255.255.252"): "the name of the zone is mistyped",
    IPv4Address("127.255.255.254"): "the list refuses queries from a public resolver",
    IPv4Address("127.255.255.255"): "the list receives too many queries",
}

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_ZONE = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_OCTET = r"([0-9]{1,3}|\[[0-9]{1,3}(?:(?:;|\.\.)[0-9]{1,3})*\])"
_CODES = re.compile(rf"{_OCTET}\.{_OCTET}\.{_OCTET}\.{_OCTET}")
_WEIGHT = re.compile(r"-?[0-9]{1,4}")

Codes = tuple[frozenset[int], ...]
"""For each octet of an answer, the numbers that match."""


class Entry(NamedTuple):
    """A blocklist, as a value of ``--dnsbl`` names it.

    :ivar codes: the answers that count; None: all answers that are not errors
    :ivar weight: added to the score of a listed client; negative for an allowlist
    :ivar written: the value of the option
    """

    zone: str
    codes: Codes | None
    weight: int
    written: str


class Listing(NamedTuple):
    """A zone that lists a client.

    :ivar codes: the answers of the zone
    :ivar weight: sum of the weights of the zone's entries that the answers match
    :ivar entries: these entries, as values of the option
    """

    zone: str
    codes: tuple[str, ...]
    weight: int
    entries: tuple[str, ...]

    def __str__(self) -> str:
        more = " ..." if len(self.codes) > MAX_CODES_SHOWN else ""
        return f"{self.zone} ({' '.join(self.codes[:MAX_CODES_SHOWN])}{more})"


def read_entries(values: Iterable[str]) -> tuple[Entry, ...]:
    """Parse blocklists, each ``ZONE[=CODES][=WEIGHT]``; the last one of a zone and codes is used.

    :raises SettingError: a value is invalid
    """
    entries: dict[tuple[str, Codes | None], Entry] = {}
    for value in values:
        zone, *rest = value.split("=")
        if not _ZONE.fullmatch(zone) or len(zone) > MAX_ZONE_LENGTH:
            raise _error(value, "write ZONE, ZONE=WEIGHT, ZONE=CODES or ZONE=CODES=WEIGHT")
        weight, codes = 1, None
        if rest and (len(rest) > 1 or "." not in rest[-1]):
            if not _WEIGHT.fullmatch(rest[-1]):
                raise _error(value, "the weight is a whole number of up to 4 digits")
            weight = int(rest.pop())
        if rest:
            codes = _codes(value, rest.pop(0))
        if rest:
            raise _error(value, "write ZONE, ZONE=WEIGHT, ZONE=CODES or ZONE=CODES=WEIGHT")
        entries[zone, codes] = Entry(zone, codes, weight, value)
    return tuple(entries.values())


def error_of(code: IPv4Address) -> str | None:
    """Return the meaning of an answer that reports an error of the list; None for a listing."""
    if code in _MEANINGS:
        return _MEANINGS[code]
    if code in ERRORS:
        return "an error of the list"
    return None if code in LISTED else "not an answer of a blocklist: outside 127.0.0.0/8"


def listing_of(
    zone: str, answers: Collection[IPv4Address], entries: Iterable[Entry]
) -> Listing | None:
    """Return the listing of a client in *zone*; None if no entry matches *answers*.

    An entry counts once even if several answers match it.
    """
    matching = [
        entry
        for entry in entries
        if entry.zone == zone and any(_matches(entry.codes, answer) for answer in answers)
    ]
    if not matching:
        return None
    codes = tuple(str(answer) for answer in sorted(set(answers)))
    weight = sum(entry.weight for entry in matching)
    return Listing(zone, codes, weight, tuple(entry.written for entry in matching))


def _matches(codes: Codes | None, answer: IPv4Address) -> bool:
    return codes is None or all(
        octet in allowed for octet, allowed in zip(answer.packed, codes, strict=True)
    )


def _codes(value: str, text: str) -> Codes:
    found = _CODES.fullmatch(text)
    if found is None:
        raise _error(value, "codes are four octets, as in 127.0.0.2 or 127.0.0.[2;4..7]")
    codes = tuple(_octet(value, octet) for octet in found.groups())
    if not _may_match(codes):
        raise _error(value, "no listing has these codes: they are errors, or outside 127.0.0.0/8")
    return codes


def _octet(value: str, text: str) -> frozenset[int]:
    numbers: set[int] = set()
    for item in text.strip("[]").split(";"):
        ends = [int(end) for end in item.split("..")]
        if len(ends) > 2 or max(ends) > 255 or ends[0] > ends[-1]:  # noqa: PLR2004 - of an octet
            raise _error(value, f"{item} is not a number or range from 0 to 255")
        numbers.update(range(ends[0], ends[-1] + 1))
    return frozenset(numbers)


def _may_match(codes: Codes) -> bool:
    """Whether an address of 127.0.0.0/8 that is not an error can match *codes*."""
    network, second, third, last = codes
    if 127 not in network:  # noqa: PLR2004 - of LISTED
        return False
    if (second, third) == (frozenset({0}), frozenset({0})):
        return last != {1}
    return (second, third) != (frozenset({255}), frozenset({255}))


def _error(value: str, reason: str) -> SettingError:
    return SettingError("dnsbl", value, reason)
