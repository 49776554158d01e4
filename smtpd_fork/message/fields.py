"""Read, add and remove the header fields of a message as bytes; all other bytes are unchanged.

A header is parsed by lines and colons alone (RFC 5322 2.2). Nothing is decoded or folded anew, as
signatures cover the bytes of the header.
"""

from __future__ import annotations

import hashlib
import re
from email.header import Header
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from aiosmtpd.smtp import Envelope

from smtpd_fork.message.trace import end_of_mbox_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "Field", "encode_field", "end_of_field", "fields", "insert_field", "prepend", "prepend_all",
    "remove_fields", "replace_content",
]  # fmt: skip

_NAME = re.compile(r"[!-9;-~]+")
_BEGIN = re.compile(rb"([!-9;-~]{1,998}+)[ \t]{0,998}+:")
"""A longer name cannot be that of a field (RFC 5322 2.1.1). Without the limit, one call could
search 25 MB for the end of a name, and no other thread could run meanwhile."""

_SPACES = re.compile(" ++")

_CR, _LF = b"\r\n"

_FOLDED = frozenset({b" ", b"\t"})
"""The first byte of a line that continues the field of the previous line."""

LONGEST_LINE = 998
"""Octets of a line without CR LF (RFC 5322 2.1.1)."""

USUAL_LINE = 78
"""Characters of a folded line (RFC 5322 2.1.1)."""


class Field(NamedTuple):
    """A header field.

    :ivar name: the name, as received, without the colon
    :ivar value: the bytes after the colon, as received, without the last line end
    :ivar start: offset of the first byte
    :ivar end: offset after the last line end
    """

    name: bytes
    value: bytes
    start: int
    end: int


def fields(content: bytes, position: int = 0, *, limit: int | None = None) -> Iterator[Field]:
    """Yield the header fields of a message, in order.

    The header ends at an empty line, or at a line that is not a field and belongs to the text.

    :param position: offset of the header
    :param limit: offset after which no line is read. If the last field continues after it, the
        field is cut off at the end of a line
    """
    while (limit is None or position <= limit) and (match := _BEGIN.match(content, position)):
        begin = match.end()
        end = end_of_field(content, begin, limit)
        last = end - (content[end - 1] == _LF)
        last -= content[last - 1] == _CR
        yield Field(match[1], content[begin:last], position, end)
        position = end


def end_of_field(content: bytes, position: int, limit: int | None = None) -> int:
    """Return the offset after a field's last line end, or the end of the content.

    :param limit: see :func:`fields`

    A regular expression could do this in one call. But during that call no other thread runs, and
    for millions of folded lines it takes a hundred times their memory.
    """
    while (end := content.find(b"\n", position) + 1) and content[end : end + 1] in _FOLDED:
        position = end
        if limit is not None and end > limit:
            break
    return end or len(content)


def encode_field(name: str, value: str) -> bytes:
    r"""Return a field as bytes, with its last CR LF.

    A value in ASCII is unchanged, but for its line ends: after a CR LF or LF it goes on in a folded
    line. A value with other characters is written as encoded words (RFC 2047). Lines that are too
    long are folded at spaces.

    :raises ValueError: *name* is not the name of a field (RFC 5322 3.6.8), or *value* has a NUL or
        a bare CR
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"not the name of a header field: {name!r}")
    value = value.replace("\r\n", "\n")
    if "\0" in value or "\r" in value:
        raise ValueError(f"{name}: NUL and bare CR cannot be in a header field")
    lines = [part.strip(" \t") for part in value.split("\n")]
    if not value.isascii():
        encoded = Header(" ".join(lines), "utf-8", USUAL_LINE, name).encode()
        return f"{name}: {encoded}".replace("\n", "\r\n").encode() + b"\r\n"
    folded = _folded(f"{name}: {lines[0]}") + [
        line for part in lines[1:] if part for line in _folded(f"\t{part}")
    ]
    return "\r\n".join(folded).encode() + b"\r\n"


def _folded(line: str) -> list[str]:
    """Return *line* in pieces that are short enough, broken at spaces where possible."""
    pieces, begin, tab = [], 0, ""
    while len(line) - begin + len(tab) > LONGEST_LINE:
        first = begin + 1 - len(tab)
        space = line.rfind(" ", first, begin + USUAL_LINE - len(tab))
        if space < 0 or not line[begin:space].strip():
            space = line.rfind(" ", first, begin + LONGEST_LINE - len(tab))
        if space < 0 or not line[begin:space].strip():
            space = begin + LONGEST_LINE - 1 - len(tab)
        pieces.append(tab + line[begin:space])
        begin, tab = space, "\t"
        if match := _SPACES.match(line, space):
            begin = match.end()
    return [*pieces, tab + line[begin:]]


def insert_field(content: bytes, name: str, value: str, *, before: int = 0) -> bytes:
    """Return *content* with a new field before its field number *before*; 0 is the top.

    :raises ValueError: as :func:`encode_field`
    """
    return _inserted(content, encode_field(name, value), before)


def _inserted(content: bytes, new: bytes, before: int) -> bytes:
    """Return *content* with new fields before its field number *before*.

    Lines of an mbox file remain at the top, so that they do not end the header.
    """
    offset = end_of_mbox_lines(content)
    for each in islice(fields(content, offset), before):
        offset = each.end
    if offset and content[offset - 1 : offset] != b"\n":
        return b"%b\r\n%b" % (content[:offset], new)
    if not offset and content and not _BEGIN.match(content) and content[:1] not in {b"\r", b"\n"}:
        new += b"\r\n"  # a text without a header has no empty line before it
    # Unlike other ways to copy a large message, join() lets other threads run.
    return b"".join([content[:offset], new, memoryview(content)[offset:]])


def remove_fields(content: bytes, name: str) -> bytes:
    """Return *content* without the fields *name*, in upper or lower case."""
    wanted = name.lower().encode("utf-8", "replace")
    kept, position = [], 0
    for each in fields(content, end_of_mbox_lines(content)):
        if each.name.lower() == wanted:
            kept.append(content[position : each.start])
            position = each.end
    return b"".join([*kept, memoryview(content)[position:]]) if position else content


def prepend(envelope: Envelope, name: str, value: str) -> None:
    """Add a header field at the top of a message. All other bytes are unchanged.

    Filters call it in ``handle_DATA``.

    :raises ValueError: *name* is not the name of a field (RFC 5322 3.6.8), or *value* has a NUL or
        a bare CR
    """
    prepend_all(envelope, [(name, value)])


def prepend_all(envelope: Envelope, added: Sequence[tuple[str, str]]) -> None:
    """Add several header fields, in order, at the top of a message, with a single copy of it.

    :raises ValueError: as :func:`encode_field`
    """
    new = b"".join([encode_field(*each) for each in added])
    replace_content(envelope, _inserted(envelope.original_content or b"", new, 0))


def replace_content(envelope: Envelope, content: bytes) -> None:
    """Replace the message of an envelope: as bytes, and as text if it was text.

    The envelope keeps the digest of the received message. So a field that a filter adds, perhaps
    with the time, does not change the key of a message that the client sends again.
    """
    was_text = isinstance(envelope.content, str)
    if not hasattr(envelope, "digest_as_received"):
        digest = hashlib.sha256(envelope.original_content or b"").digest()
        envelope.digest_as_received = digest  # type: ignore[attr-defined]
    envelope.original_content = content
    envelope.content = content.decode("utf-8", "surrogateescape") if was_text else content
