"""Verdict: what a milter answers in the end, and what it changes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from smtpd_fork.dialogue.path import parse_path
from smtpd_fork.hops.milter.codec import MilterGarbageError, texts
from smtpd_fork.hops.passed_on import passed_on
from smtpd_fork.hops.replies import HopReply

__all__ = [
    "REJECTED", "TRY_AGAIN", "Edit", "Kind", "Verdict", "edit_of_address", "parse_edit", "reply_of",
]  # fmt: skip

REJECTED = "550 5.7.1 Command rejected"
TRY_AGAIN = "451 4.7.1 Service unavailable, try again later"
"""As Sendmail and Postfix have it."""

_LINE = re.compile(rb"([45][0-9][0-9])(?:[ -]([^\r\n]*))?(?:\r?\n|\r|\Z)")

_NAME = re.compile(rb"[!-9;-~]{1,255}")
"""The name of a field (RFC 5322 3.6.8); a line of 998 octets has to have room for a value."""

_PARAMETER = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*(?:=[!-<>-~]+)?")
"""RFC 5321 4.1.2, esmtp-param."""


LONGEST_REPLY = 1 << 15
"""Octets of a reply that are looked at: libmilter takes 32 lines of 980 (``smfi_setmlreply``)."""


class Kind(Enum):
    """What becomes of the message."""

    ACCEPT = auto()
    REFUSE = auto()
    DISCARD = auto()


class Edit(NamedTuple):
    """One change, in the order in which the milter asked for it.

    :ivar command: its octet, as in :data:`EDITS`
    :ivar number: of a field
    :ivar name: of a field
    :ivar value: of a field, or a piece of the body
    :ivar address: of a sender or a recipient; "" is the null sender
    :ivar parameters: of it
    """

    command: bytes
    number: int = 0
    name: bytes = b""
    value: bytes = b""
    address: str = ""
    parameters: tuple[str, ...] = ()


@dataclass(slots=True)
class Verdict:
    """What a milter has decided.

    :ivar reply: of REFUSE: for the client
    :ivar edits: of ACCEPT: what it changes
    :ivar quarantine: why the message is to be put aside; None: it is not
    """

    kind: Kind
    reply: str = ""
    edits: list[Edit] = field(default_factory=list)
    quarantine: str | None = None


def reply_of(data: bytes) -> str:
    """Return a milter's own reply, checked, cut and on one line.

    A reply without a code is 451 (RFC 5321 4.2.1). ``%%`` is a percent sign, as Sendmail has it.
    """
    data = data[:LONGEST_REPLY].partition(b"\0")[0]
    code, lines, position = 0, [], 0
    while match := _LINE.match(data, position):
        if code not in {0, int(match[1])}:
            break
        code = int(match[1])
        lines.append((match[2] or b"").decode("utf-8", "replace").replace("%%", "%"))
        position = match.end()
        if position >= len(data):
            break
    return passed_on(HopReply(code, tuple(lines))) if code else TRY_AGAIN


def parse_edit(command: bytes, data: bytes) -> Edit:
    """Return the change that a frame asks for.

    :raises MilterGarbageError: it cannot be made out, or is not possible
    """
    if command == b"b":
        return Edit(command, value=data)
    if command in b"him":
        number, rest = (0, data) if command == b"h" else (_number(data), data[4:])
        name, value = (*texts(rest, 1, 2), b"")[:2]
        if not _NAME.fullmatch(name):
            raise MilterGarbageError(f"it names a header field {name[:80]!r}")
        return Edit(command, number, name, value)
    return edit_of_address(command, *texts(data, 1, 2))


def edit_of_address(command: bytes, address: bytes, parameters: bytes = b"") -> Edit:
    """Return a change of the sender or of a recipient.

    :raises MilterGarbageError: no client could have sent it
    """
    words = parameters.decode("ascii", "replace").split()
    if not all(map(_PARAMETER.fullmatch, words)):
        raise MilterGarbageError(f"it sets the parameters {parameters[:80]!r}")
    return Edit(command, address=_address(address, null=command == b"e"), parameters=tuple(words))


def _number(data: bytes) -> int:
    return int.from_bytes(data[:4], "big")


def _address(data: bytes, *, null: bool) -> str:
    """Return an address, without angle brackets; what no client could send is refused."""
    text = data.decode("utf-8", "replace")
    if null and text in {"", "<>"}:
        return ""
    path = text if text.startswith("<") else f"<{text}>"
    parsed = parse_path(path, strict=True)
    if parsed is None or parsed[1] or parsed[0] == "<>":
        raise MilterGarbageError(f"it names an address {text[:80]!r}")
    return parsed[0]
