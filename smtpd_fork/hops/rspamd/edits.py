"""Changes: turn an answer of rspamd into changes to a message. Sans-io.

The order is that of rspamd's own milter: fields are removed before others are added; signatures and
the fields that mark spam are last.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import NamedTuple

from smtpd_fork.hops.milter.conversation import MOST_EDITS
from smtpd_fork.hops.milter.verdict import Edit, edit_of_address
from smtpd_fork.hops.rspamd.answer import (
    AddedField,
    Answer,
    MilterBlock,
    RspamdGarbageError,
    Value,
)
from smtpd_fork.message.fields import LONGEST_LINE, encode_field

__all__ = ["ADD_HEADER", "REWRITE_SUBJECT", "Changes", "changes_of"]

ADD_HEADER = "add header"
REWRITE_SUBJECT = "rewrite subject"

_NAME = re.compile(r"[!-9;-~]{1,255}")


class Changes(NamedTuple):
    """Changes to a message.

    :ivar removed: fields to remove first: for each name in lower case, their numbers among the
        fields of that name, from 1
    :ivar edits: the other changes, in order
    """

    removed: Mapping[bytes, Collection[int]]
    edits: list[Edit]

    def __bool__(self) -> bool:
        return bool(self.removed or self.edits)


def changes_of(answer: Answer, names: Iterable[bytes], *, utf8: bool) -> Changes:
    """Return the changes that an answer requests.

    :param names: the names of the message's fields, in order
    :param utf8: whether fields may contain UTF-8 (RFC 6532)
    :raises RspamdGarbageError: a change is not possible, or there are too many
    """
    block = answer.block
    marks = dict(_marks(answer, block))
    if not (answer.milter or answer.signatures or marks):
        return Changes({}, [])
    counts = Counter(name.lower() for name in names)
    removed = dict(_removed(block, counts))
    for name in marks:
        if name != "Subject":
            removed[name.lower().encode()] = range(1, counts[name.lower().encode()] + 1)
    left = counts.total() - sum(map(len, removed.values()))
    shown = (_edit(b"m", 1, name, value, utf8=utf8) for name, value in marks.items())
    wanted = chain(
        _added(block, left, utf8=utf8), _of_envelope(block), _signatures(answer, utf8=utf8), shown
    )
    edits = list(islice(wanted, MOST_EDITS + 1))
    if len(edits) > MOST_EDITS:
        raise RspamdGarbageError(f"it wants more than {MOST_EDITS} changes")
    return Changes(removed, edits)


def _marks(answer: Answer, block: MilterBlock) -> Iterator[tuple[str, str]]:
    """Yield the fields that show the action; they replace existing fields of the same name."""
    if block.no_action:
        yield "X-Rspamd-Action", answer.action
    elif answer.action == REWRITE_SUBJECT and answer.subject is not None:
        yield "Subject", answer.subject
    elif answer.action == ADD_HEADER:
        header = "Yes" if block.spam_header is None else block.spam_header
        yield from header.items() if isinstance(header, dict) else [("X-Spam", header)]


def _removed(
    block: MilterBlock, counts: Mapping[bytes, int]
) -> Iterator[tuple[bytes, Collection[int]]]:
    if not isinstance(block.remove_headers, dict):
        return
    for name, which in block.remove_headers.items():
        key = name.lower().encode("utf-8", "replace")
        count = counts[key]
        numbers = [int(each) for each in (which if isinstance(which, list) else [which])]
        found = {each if each > 0 else count + each + 1 for each in numbers if each}
        yield key, range(1, count + 1) if 0 in numbers else found & set(range(1, count + 1))


def _added(block: MilterBlock, count: int, *, utf8: bool) -> Iterator[Edit]:
    """Yield the fields to add.

    Positions count from 0 and include the field ``Received`` of this server, as for a milter.

    :param count: the number of fields in the header
    """
    if not isinstance(block.add_headers, dict):
        return
    for name, values in block.add_headers.items():
        for value in values if isinstance(values, list) else [values]:
            place = _place(value, count)
            if place is None:
                yield _edit(b"h", 0, name, _value(value), utf8=utf8)
            else:
                yield _edit(b"i", place, name, _value(value), utf8=utf8)
            count += 1


def _value(value: Value) -> str | int | float:
    return value.value if isinstance(value, AddedField) else value


def _place(value: Value, count: int) -> int | None:
    """Return the position of an added field; None: at the end of the header."""
    place = None
    if isinstance(value, AddedField):
        place = value.index if value.order is None else value.order
    if place is None:
        return None
    return max(0, count + place + 2) if place < 0 else min(place, count + 1)


def _of_envelope(block: MilterBlock) -> Iterator[Edit]:
    if block.change_from is not None:
        yield _address(b"e", block.change_from)
    for address in block.add_rcpt:
        yield _address(b"+", address)
    for address in block.del_rcpt:
        yield _address(b"-", address)


def _address(command: bytes, text: str) -> Edit:
    try:
        return edit_of_address(command, text.encode("utf-8", "replace"))
    except ValueError as error:
        raise RspamdGarbageError(str(error)) from None


def _signatures(answer: Answer, *, utf8: bool) -> Iterator[Edit]:
    values = answer.signatures
    for place, value in enumerate([values] if isinstance(values, str) else values, 1):
        yield _edit(b"i", place, "DKIM-Signature", value, utf8=utf8)


def _edit(command: bytes, number: int, name: str, value: str | float, *, utf8: bool) -> Edit:
    if not _NAME.fullmatch(name):
        raise RspamdGarbageError(f"it names a header field {name[:80]!r}")
    return Edit(command, number, name.encode(), _octets(name, str(value), utf8=utf8))


def _octets(name: str, value: str, *, utf8: bool) -> bytes:
    """Return the octets of a value, without the space after the colon.

    The value is encoded if the header has to be ASCII, and folded if a line is too long.
    """
    value = value.replace("\r\n", "\n").replace("\r", " ").replace("\0", " ").strip(" \t\n")
    longest = max(map(len, f"{name}: {value}".split("\n")))
    if longest <= LONGEST_LINE and (utf8 or value.isascii()):
        return value.encode("utf-8", "replace")
    legible = value.encode("utf-8", "replace").decode()
    return encode_field(name, legible)[len(name) + 1 : -2].removeprefix(b" ")
