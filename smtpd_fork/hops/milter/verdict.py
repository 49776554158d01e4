"""Verdict: a milter's decision about a message, and its changes to the message."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from smtpd_fork.dialogue.path import parse_path
from smtpd_fork.hops.client_reply import client_reply
from smtpd_fork.hops.milter.codec import MilterGarbageError, texts
from smtpd_fork.hops.replies import HopReply

__all__ = [
    "REJECTED", "TRY_AGAIN", "Edit", "Kind", "Verdict", "edit_of_address", "parse_edit", "reply_of",
]  # fmt: skip

REJECTED = "550 5.7.1 Command rejected"
TRY_AGAIN = "451 4.7.1 Service unavailable, try again later"
"""The replies of Sendmail and Postfix."""

_LINE = re.compile(rb"([45][0-9][0-9])(?:[ -]([^\r\n]*))?(?:\r?\n|\r|\Z)")

_NAME = re.compile(rb"[!-9;-~]{1,998}")
"""The name of a field (RFC 5322 3.6.8), as long as in messages: milters delete such fields."""

_PARAMETER = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*(?:=[!-<>-~]+)?")
"""RFC 5321 4.1.2, esmtp-param."""


REPLACEMENT = "\ufffd"
"""The character in place of octets that are not UTF-8: the address would be another one."""

LONGEST_REPLY = 1 << 15
"""Octets of a reply that are parsed; libmilter allows 32 lines of 980 (``smfi_setmlreply``)."""


class Kind(Enum):
    """The decision about a message."""

    ACCEPT = auto()
    REFUSE = auto()
    DISCARD = auto()


class Edit(NamedTuple):
    """A change to a message.

    :ivar command: the octet of the command
    :ivar number: number or index of a field
    :ivar name: name of a field
    :ivar value: value of a field, or a chunk of the body
    :ivar address: address of a sender or a recipient; "" is the null sender
    :ivar parameters: ESMTP parameters of the address
    """

    command: bytes
    number: int = 0
    name: bytes = b""
    value: bytes = b""
    address: str = ""
    parameters: tuple[str, ...] = ()


@dataclass(slots=True)
class Verdict:
    """A milter's decision.

    :ivar reply: the reply to the client, of REFUSE
    :ivar edits: the changes in order, of ACCEPT
    :ivar quarantine: the reason to quarantine the message; None: it is not quarantined
    """

    kind: Kind
    reply: str = ""
    edits: list[Edit] = field(default_factory=list)
    quarantine: str | None = None


def reply_of(data: bytes) -> str:
    """Return the reply in a milter's answer, cleaned, cut and on one line.

    Without a valid code the reply is 451 (RFC 5321 4.2.1). ``%%`` is a percent sign, as in
    Sendmail.
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
    return client_reply(HopReply(code, tuple(lines))) if code else TRY_AGAIN


def parse_edit(command: bytes, data: bytes) -> Edit:
    """Return the change that a frame requests.

    :raises MilterGarbageError: the frame is malformed, or the change is not possible
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

    :raises MilterGarbageError: the address or the parameters are not valid in MAIL or RCPT
    """
    words = parameters.decode("ascii", "replace").split()
    if not all(map(_PARAMETER.fullmatch, words)):
        raise MilterGarbageError(f"it sets the parameters {parameters[:80]!r}")
    return Edit(command, address=_address(address, null=command == b"e"), parameters=tuple(words))


def _number(data: bytes) -> int:
    return int.from_bytes(data[:4], "big")


def _address(data: bytes, *, null: bool) -> str:
    """Return an address without angle brackets; raise an error if it is not valid in SMTP."""
    text = data.decode("utf-8", "replace")
    if null and text in {"", "<>"}:
        return ""
    path = text if text.startswith("<") else f"<{text}>"
    parsed = parse_path(path, strict=True, postmaster=not null)
    if parsed is None or parsed[1] or parsed[0] == "<>" or REPLACEMENT in text:
        raise MilterGarbageError(f"it names an address {text[:80]!r}")
    return parsed[0]
