"""Find and remove forged Authentication-Results, which claim to be results of this server.

Readers of such a field rely on its first word, the authserv-id, which names the server that checked
the message. A client can write any name there. So the fields with a name of this server are removed
before the message is checked here (RFC 8601 5). All other bytes are unchanged.

Programs disagree about where a header ends and where its lines end. So everything that some program
could read as such a field is treated as one: also after a line that is not a field, after a bare
CR, or with a space before the colon.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection

from smtpd_fork.message.fields import end_of_field
from smtpd_fork.message.loops import LONG_HEADER
from smtpd_fork.message.mailbox import domain_key

__all__ = ["authserv_id", "authserv_key", "has_results", "without_results"]

_FIRST = re.compile(rb"(?i:authentication-results)")
_NEXT = re.compile(rb"[\r\n](?:(?<=\n)(\r?\n)|(?i:authentication-results))")
_LINE_END = re.compile(rb"\r\n|\r|\n")
_COLON = re.compile(rb"[ \t]*+:")

PIECE = 1 << 16
"""Bytes of a header that one call searches. Other threads cannot run meanwhile, for up to a
millisecond."""

_OVERLAP = len(b"\nauthentication-results")

LONGEST_ID = 2000
"""Bytes of a field in which its authserv-id must end; a domain has at most 255."""

_WORD = re.compile(r'[^\s()<>@,;:\\"/\[\]?=]*')
"""A token of RFC 2045 5.1; an authserv-id is a token or a quoted string."""

_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)


def has_results(content: bytes) -> bool:
    """Return whether a message may have such a field of any server; takes microseconds.

    :param content: a message whose header is at most 64 KiB long
    """
    end = content.find(b"\n\r\n", 0, LONG_HEADER)
    return b"authentication-results" in content[: end if end >= 0 else LONG_HEADER].lower()


def without_results(content: bytes, ids: Collection[str]) -> bytes:
    """Return a message without the Authentication-Results of certain servers.

    If there are none, the same object is returned.

    :param ids: the results of :func:`authserv_key` for the names of these servers
    """
    kept: list[bytes] = []
    behind = position = 0
    match = _FIRST.match(content) or _search(content, 0)
    while match is not None and (match.re is _FIRST or match[1] is None):
        start, end = _span(content, match)
        position = match.end()
        if end and _is_of(content[position:end], ids):
            kept.append(content[behind:start])
            behind = position = end
        match = _search(content, position - 1)
    return b"".join([*kept, memoryview(content)[behind:]]) if behind else content


def _search(content: bytes, position: int) -> re.Match[bytes] | None:
    """Return the next field with this name, or the end of the header."""
    if position == 0 and content.startswith((b"\n", b"\r\n")):
        return None
    while position < len(content):
        if match := _NEXT.search(content, position, position + PIECE + _OVERLAP):
            return match
        position += PIECE
    return None


def _span(content: bytes, match: re.Match[bytes]) -> tuple[int, int]:
    """Return the start and end of the bytes to remove for a field; 0, 0 if it is not a field.

    After a bare CR, these are the CR and the field, but not the end of its line.

    :param match: the name of the field, and the character before it
    """
    colon = _COLON.match(content, match.end())
    if colon is None:
        return 0, 0
    start = match.start()
    if match.re is _FIRST:
        return start, end_of_field(content, colon.end())
    if content[start] == ord("\n"):
        return start + 1, end_of_field(content, colon.end())
    end = colon.end()
    while line_end := _LINE_END.search(content, end):
        end = line_end.end()
        if content[end : end + 1] not in {b" ", b"\t"}:
            return start, line_end.start()
    return start, len(content)


def _is_of(field: bytes, ids: Collection[str]) -> bool:
    """Return whether a program may read a field as one of certain servers.

    An encoded word cannot be an authserv-id (RFC 2047 5), but some programs decode it.

    :param field: the colon and the value
    :param ids: as of :func:`without_results`
    """
    value = field.partition(b":")[2]
    found = authserv_id(value)
    if found is not None:
        return authserv_key(found) in ids
    text = value.decode("utf-8", "replace").lower()
    return "=?" in text or any(each in text for each in ids)


def authserv_id(value: bytes) -> str | None:
    """Return the authserv-id of a field's value: a token, or a quoted string (RFC 8601 2.2).

    White space, control characters and comments before it are skipped. The result is empty if the
    field has no authserv-id, and None if it cannot be determined.
    """
    text = value[:LONGEST_ID].decode("utf-8", "replace")
    position = _skip_comments(text)
    if position < 0 or text.startswith("=?", position):
        return None
    if text.startswith('"', position):
        quoted = _QUOTED.match(text, position)
        return None if quoted is None else _ESCAPED.sub(r"\1", quoted[1])
    word: str = _WORD.match(text, position)[0]  # type: ignore[index] # it matches "" as well
    is_cut = len(value) > LONGEST_ID and position + len(word) == len(text)
    return None if is_cut else word


def _skip_comments(text: str) -> int:
    """Return the offset after white space and nested comments; -1 if a comment is not closed."""
    depth = position = 0
    while position < len(text):
        character = text[position]
        if character == "(":
            depth += 1
        elif depth and character == ")":
            depth -= 1
        elif depth and character == "\\":
            position += 1
        elif not depth and character.isprintable() and not character.isspace():
            break
        position += 1
    return -1 if depth else position


def authserv_key(name: str) -> str:
    """Return an authserv-id in the form for comparisons: lower case, with the domain in ASCII."""
    if not name.isascii():
        name = unicodedata.normalize("NFKC", name)
    return domain_key("".join(filter(str.isprintable, name)).rstrip("."))
