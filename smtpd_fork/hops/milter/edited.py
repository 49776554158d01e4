"""Parts: a message as a milter gets it, and with what the milter changes; bytes alone.

Whatever is not changed stays as it came, byte for byte, because signatures cover it.
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
"""Of a header that milters get. It is looked at in 20 ms, in the event loop. Sendmail takes
32 KiB (MaxHeadersLength), Postfix 100 KiB a field."""


class HeaderTooLargeError(ValueError):
    """A header has too many fields or bytes."""


@dataclass(eq=False, slots=True)
class _Field:
    """A field, with its last line end.

    :ivar name: in lower case
    """

    name: bytes
    octets: bytes


class Parts:
    """The parts of a message.

    :raises HeaderTooLargeError: its header is too large
    :ivar body: where the body begins
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._fields: list[_Field] = []  # as they are changed
        self._above = 0  # how many of them are above our Received
        self._front = end_of_mbox_lines(content)
        limit = self._front + MOST_HEADER_BYTES
        self._found = list(islice(fields(content, self._front, limit=limit), MOST_FIELDS + 1))
        self._end = end = self._found[-1].end if self._found else self._front
        if len(self._found) > MOST_FIELDS or end - self._front > MOST_HEADER_BYTES:
            raise HeaderTooLargeError
        empty = 2 if content.startswith(b"\r\n", end) else content.startswith(b"\n", end)
        self.body = end + empty

    @property
    def names_and_values(self) -> list[tuple[bytes, bytes]]:
        """The fields of the header, as they came."""
        return [(each.name, each.value) for each in self._found]

    def edited(
        self,
        edits: Iterable[Edit],
        *,
        leading_space: bool,
        binary: bool = False,
        removed: Mapping[bytes, Collection[int]] | None = None,
    ) -> bytes:
        """Return the message with changes of its header and body, in order.

        :param leading_space: values begin with the space behind the colon, or with none
        :param binary: the body is not made of lines
        :param removed: fields that are removed before: by their name in lower case, their numbers
            among those of that name, from 1
        """
        content = self._content
        self._above = 0
        self._fields = [_Field(e.name.lower(), content[e.start : e.end]) for e in self._found]
        if self._fields and not self._fields[-1].octets.endswith(b"\n"):
            self._fields[-1].octets += b"\r\n"  # it is the whole message
        body: list[bytes] | None = None
        changed = bool(removed) and self._remove(removed or {})
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
        """Remove fields; return whether there were any."""
        counts = Counter[bytes]()
        kept = []
        for each in self._fields:
            counts[each.name] += 1
            if counts[each.name] not in removed.get(each.name, ()):
                kept.append(each)
        before, self._fields = len(self._fields), kept
        return len(kept) < before

    def _edit(self, edit: Edit, *, leading_space: bool) -> None:
        """Change the header.

        Fields of one name are counted from 1; one that is not there is added. The place of an
        inserted one is counted from 0, our ``Received`` included, which a milter does not see and
        Sendmail and Postfix have on top by then: 1 is below that.
        """
        found = self._find(edit.name.lower(), edit.number) if edit.command == b"m" else None
        if edit.command == b"m" and not edit.value:
            if found is not None:
                self._fields.remove(found)
            return
        octets = _octets(edit.name, edit.value, leading_space=leading_space)
        if found is not None:
            found.octets = octets
            return
        at = len(self._fields)
        if edit.command == b"i":
            at = min(edit.number, at + 1)
            is_above = at <= self._above
            self._above += is_above
            at -= not is_above
        self._fields.insert(at, _Field(edit.name.lower(), octets))

    def _find(self, name: bytes, number: int) -> _Field | None:
        for each in self._fields:
            if each.name == name:
                number -= 1
                if number <= 0:  # 0 is the first one, as 1 is
                    return each
        return None

    def _joined(self, body: bytes | None) -> bytes:
        content = self._content
        between = content[self._end : self.body]
        rest: Sequence[bytes | memoryview] = [body] if body else []
        if body is None:
            rest = [memoryview(content)[self.body :]]
        if not between and (body or (body is None and len(content) > self.body)):
            between = b"\r\n"  # text without a header
        head = [content[: self._front], *[each.octets for each in self._fields]]
        return b"".join([*head, between, *rest])


def _octets(name: bytes, value: bytes, *, leading_space: bool) -> bytes:
    """Return a field; whatever a value holds, it is one field, whose lines end in CR LF.

    A bare CR becomes a space, an empty line is dropped, and a line that does not begin with a
    blank gets a tab, so that no value ends the header or begins another field.
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
    """Return a new body, whose lines end in CR LF: a bare CR or LF can smuggle a message."""
    if binary:
        return body
    if b"\r\n" in body:
        body = body.replace(b"\r\n", b"\n")
    if b"\r" in body:
        body = body.replace(b"\r", b"\n")
    return body.replace(b"\n", b"\r\n")
