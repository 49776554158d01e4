"""Parts: split a message for a milter, and apply the milter's changes.

All bytes that are not changed stay as they are, because signatures cover them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from smtpd_fork.message.fields import fields
from smtpd_fork.message.trace import end_of_mbox_lines

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from smtpd_fork.hops.milter.verdict import Edit

__all__ = ["MOST_FIELDS", "MOST_HEADER_BYTES", "HeaderTooLargeError", "Parts"]

MOST_HEADER_BYTES = 1 << 20
MOST_FIELDS = 10_000
"""Maximum bytes and fields of a header for milters. Such a header is parsed in 20 ms, in the event
loop. Sendmail's limit is 32 KiB (MaxHeadersLength), Postfix's is 100 KiB per field."""


class HeaderTooLargeError(ValueError):
    """A header has too many fields or bytes."""


@dataclass(eq=False, slots=True)
class _Field:
    """A header field.

    :ivar name: the name in lower case
    :ivar octets: the whole field, including its final line end
    """

    name: bytes
    octets: bytes


class Parts:
    """The parts of a message.

    :param longest_field: maximum bytes of a field
    :raises HeaderTooLargeError: the header is too large
    :ivar body: the index of the body
    """

    def __init__(self, content: bytes, *, longest_field: int = MOST_HEADER_BYTES) -> None:
        self._content = content
        self._fields: list[_Field] = []  # with the changes so far
        self._named: dict[bytes, list[_Field]] = {}  # the same by name
        self._stale = set[bytes]()  # names whose entry in _named is out of date
        self._has_deleted = False  # whether deleted fields are in the list, without octets
        self._above = 0  # number of fields that were inserted above our Received
        self._front = end_of_mbox_lines(content)
        limit = self._front + MOST_HEADER_BYTES
        self._found = list(islice(fields(content, self._front, limit=limit), MOST_FIELDS + 1))
        self._end = end = self._found[-1].end if self._found else self._front
        if len(self._found) > MOST_FIELDS or end - self._front > MOST_HEADER_BYTES:
            raise HeaderTooLargeError
        if end - self._front > longest_field and any(
            each.end - each.start > longest_field for each in self._found
        ):
            raise HeaderTooLargeError
        empty = 2 if content.startswith(b"\r\n", end) else content.startswith(b"\n", end)
        self.body = end + empty

    @property
    def names_and_values(self) -> list[tuple[bytes, bytes]]:
        """The fields of the header without changes."""
        return [(each.name, each.value) for each in self._found]

    def edited(
        self,
        edits: Iterable[Edit],
        *,
        leading_space: bool,
        binary: bool = False,
        removed: Mapping[bytes, Collection[int]] | None = None,
    ) -> bytes:
        """Return the message with changes to its header and body, in order.

        :param leading_space: whether the values of *edits* include the space after the colon
        :param binary: whether the body is BINARYMIME, so that line ends are not normalized
        :param removed: fields to remove first: for each name in lower case, their numbers among the
            fields of that name, from 1
        """
        content = self._content
        self._above = 0
        self._fields = [_Field(e.name.lower(), content[e.start : e.end]) for e in self._found]
        if self._fields and not self._fields[-1].octets.endswith(b"\n"):
            self._fields[-1].octets += b"\r\n"  # the message ends within its header
        body: list[bytes] | None = None
        changed = bool(removed) and self._remove(removed or {})
        self._named, self._stale, self._has_deleted = _by_name(self._fields), set(), False
        for edit in edits:
            if edit.command == b"b":
                body = [] if body is None else body
                body.append(edit.value)
            elif edit.command in b"him":
                changed = True
                self._edit(edit, leading_space=leading_space)
        if body is None and not changed:
            return self._content
        return self._joined(None if body is None else _lines(b"".join(body), binary=binary))

    def _remove(self, removed: Mapping[bytes, Collection[int]]) -> bool:
        """Remove fields; return whether any were found."""
        counts = Counter[bytes]()
        kept = []
        for each in self._fields:
            counts[each.name] += 1
            if counts[each.name] not in removed.get(each.name, ()):
                kept.append(each)
        before, self._fields = len(self._fields), kept
        return len(kept) < before

    def _edit(self, edit: Edit, *, leading_space: bool) -> None:
        """Apply a change to the header.

        Fields of one name are numbered from 1; a change of a missing field adds it. The index of an
        inserted field counts from 0 and includes our ``Received``, which the milter does not get,
        because Sendmail and Postfix have it on top at that time: index 1 is below it.
        """
        name, at = edit.name.lower(), max(edit.number, 1) - 1
        named = self._of_name(name) if edit.command == b"m" else []
        if edit.command == b"m" and not edit.value:
            if at < len(named):
                named.pop(at).octets = b""
                self._has_deleted = True
            return
        octets = _octets(edit.name, edit.value, leading_space=leading_space)
        if at < len(named):
            named[at].octets = octets
        elif edit.command == b"i":
            self._insert(_Field(name, octets), edit.number)
        else:
            self._fields.append(_Field(name, octets))
            self._named.setdefault(name, []).append(self._fields[-1])

    def _insert(self, new: _Field, number: int) -> None:
        if self._has_deleted:
            self._fields = [each for each in self._fields if each.octets]
            self._has_deleted = False
        at = min(number, len(self._fields) + 1)
        is_above = at <= self._above
        self._above += is_above
        self._fields.insert(at - (not is_above), new)
        if self._named.get(new.name):
            self._stale.add(new.name)
        else:
            self._named[new.name] = [new]

    def _of_name(self, name: bytes) -> list[_Field]:
        """Return the fields of a name, in order."""
        if name in self._stale:
            self._stale.remove(name)
            self._named[name] = [e for e in self._fields if e.name == name and e.octets]
        return self._named.get(name, [])

    def _joined(self, body: bytes | None) -> bytes:
        content = self._content
        between = content[self._end : self.body]
        rest: Sequence[bytes | memoryview] = [body] if body else []
        if body is None:
            rest = [memoryview(content)[self.body :]]
        if not between and (body or (body is None and len(content) > self.body)):
            between = b"\r\n"  # the message had a body without a header
        head = [content[: self._front], *[each.octets for each in self._fields]]
        return b"".join([*head, between, *rest])


def _by_name(found: Iterable[_Field]) -> dict[bytes, list[_Field]]:
    named: dict[bytes, list[_Field]] = {}
    for each in found:
        named.setdefault(each.name, []).append(each)
    return named


def _octets(name: bytes, value: bytes, *, leading_space: bool) -> bytes:
    """Return a field whose lines end in CR LF, with any value.

    A bare CR becomes a space, an empty line is removed, and a line that does not begin with a blank
    gets a tab, so that a value can neither end the header nor begin another field.
    """
    if b"\n" not in value and b"\r" not in value:
        lines = [value]
    else:
        lines = value.replace(b"\r\n", b"\n").replace(b"\r", b" ").split(b"\n")
        more = [line for line in lines[1:] if line.strip()]
        lines[1:] = [line if line[:1] in {b" ", b"\t"} else b"\t" + line for line in more]
    colon = b":" if leading_space else b": "
    return b"%b%b%b\r\n" % (name, colon, b"\r\n".join(lines))


def _lines(body: bytes, *, binary: bool) -> bytes:
    """Return a body whose lines end in CR LF: a bare CR or LF would allow SMTP smuggling."""
    if binary:
        return body
    if b"\r\n" in body:
        body = body.replace(b"\r\n", b"\n")
    if b"\r" in body:
        body = body.replace(b"\r", b"\n")
    return body.replace(b"\n", b"\r\n")
