"""Conversation: Dovecot's authentication protocol on one connection. Sans-io: no socket, no clock.

The protocol is Dovecot's "Authentication Protocol v1.2": lines of words separated by tabs. The
service first sends its mechanisms, and DONE after them. Then any number of requests may be in
progress, each with a number; an answer has the number of its request. Lines with unknown commands
are ignored, as the protocol requires.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import NamedTuple

__all__ = ["LONGEST_REQUEST", "Answer", "Conversation", "DovecotGarbageError", "Kind", "Mechanism"]

VERSION = b"VERSION\t1\t2\n"

LONGEST_REQUEST = 8191
"""Maximum octets of a line to Dovecot: after a longer line Dovecot 2.3 closes the connection, which
other sessions use as well."""

LONGEST_LINE = 1 << 16
"""Maximum octets of a line from Dovecot; a challenge for a client has at most 12 KiB."""

LONGEST_CHALLENGE = 12288 * 3 // 4
"""Maximum octets of a challenge before base64: the limit of a line of AUTH (RFC 4954 4)."""

MOST_LINES = 1000
"""Maximum lines before DONE, and maximum ignored lines between two answers."""

MOST_MECHANISMS = 50

_NAME = re.compile(rb"[A-Z0-9_-]{1,20}")
"""The name of a mechanism (RFC 4422 3.1)."""

_NUMBER = re.compile(rb"[0-9]{1,10}")
_ESCAPES = {b"0": b"\0", b"1": b"\1", b"t": b"\t", b"r": b"\r", b"n": b"\n"}
_ESCAPED = re.compile(rb"\x01(.?)", re.DOTALL)
_TO_ESCAPE = re.compile(rb"[\x00\x01\t\r\n]")
_ESCAPE_OF = {octet: b"\1" + letter for letter, octet in _ESCAPES.items()}


class DovecotGarbageError(ValueError):
    """Dovecot, or another program at its address, has violated the protocol."""


class Mechanism(NamedTuple):
    """A mechanism that Dovecot offers.

    :ivar plaintext: whether an eavesdropper would learn the password or a token
    """

    name: str
    plaintext: bool = False


class Kind(Enum):
    """The kind of an answer."""

    OK = b"OK"
    FAIL = b"FAIL"
    CONTINUE = b"CONT"


class Answer(NamedTuple):
    """An answer to a request.

    :ivar data: the challenge, of CONTINUE
    :ivar parameters: the parameters of OK and FAIL; the value is "" if there is none
    """

    kind: Kind
    data: bytes = b""
    parameters: Mapping[str, str] = {}

    @property
    def user(self) -> str:
        """The user name in the answer; empty if there is none."""
        return self.parameters.get("user", "")

    def has_code(self, word: str) -> bool:
        """Return whether a failure has a code: ``temp``, ``authz``, ``user_disabled``, ..."""
        code = self.parameters.get("code", "")
        return word in self.parameters or code in {word, f"{word}_fail"}


class Conversation:
    """The authentication protocol on one connection.

    :param client: a number that no other client of the service uses
    :ivar ready: whether the service has sent DONE
    :ivar mechanisms: the mechanisms in the order of Dovecot's configuration
    """

    def __init__(self, client: int) -> None:
        self.greeting = VERSION + b"CPID\t%d\n" % client
        self.ready = False
        self.mechanisms: list[Mechanism] = []
        self._version = False
        self._buffer = bytearray()
        self._idle_lines = 0

    @property
    def buffered(self) -> int:
        """The number of octets of an incomplete line."""
        return len(self._buffer)

    def receive(self, data: bytes) -> Iterator[tuple[int, Answer]]:
        """Yield the answers that are complete with *data*, each with the number of its request.

        The result does not depend on how the stream is split.

        :raises DovecotGarbageError: the data violates the protocol
        """
        self._buffer += data
        start = 0
        try:
            while (end := self._buffer.find(b"\n", start)) >= 0:
                line, start = bytes(self._buffer[start:end]), end + 1
                answer = self._line(line)
                if answer is not None:
                    yield answer
        finally:
            del self._buffer[:start]
        if len(self._buffer) > LONGEST_LINE:
            raise DovecotGarbageError(f"it sends a line of more than {LONGEST_LINE} bytes")

    def _line(self, line: bytes) -> tuple[int, Answer] | None:
        if len(line) > LONGEST_LINE:
            raise DovecotGarbageError(f"it sends a line of more than {LONGEST_LINE} bytes")
        command, *words = line.split(b"\t")
        self._idle_lines += 1
        if not self._version or not self.ready:
            self._opening(command, words)
        elif command in {kind.value for kind in Kind}:
            self._idle_lines = 0
            return _answer(Kind(command), words)
        if self._idle_lines > MOST_LINES:
            raise DovecotGarbageError(f"it sends more than {MOST_LINES} lines without an answer")
        return None

    def _opening(self, command: bytes, words: list[bytes]) -> None:
        if not self._version:
            if command != b"VERSION" or not words or words[0] != b"1":
                raise DovecotGarbageError("it is not an authentication service of version 1")
            self._version = True
        elif command == b"MECH" and words and _NAME.fullmatch(words[0]):
            if len(self.mechanisms) >= MOST_MECHANISMS:
                raise DovecotGarbageError(f"it has more than {MOST_MECHANISMS} mechanisms")
            self.mechanisms.append(Mechanism(words[0].decode(), b"plaintext" in words[1:]))
        elif command == b"DONE":
            self.ready, self._idle_lines = True, 0


def _answer(kind: Kind, words: list[bytes]) -> tuple[int, Answer]:
    if not words or not _NUMBER.fullmatch(words[0]):
        raise DovecotGarbageError("it sends an answer without a number")
    number = int(words[0])
    if kind is not Kind.CONTINUE:
        return number, Answer(kind, parameters=dict(map(_parameter, words[1:])))
    try:
        data = b64decode(words[1] if len(words) > 1 else b"", validate=True)
    except Base64Error:
        raise DovecotGarbageError("it sends a challenge that is not base64") from None
    if len(data) > LONGEST_CHALLENGE:
        raise DovecotGarbageError(f"it sends a challenge of {len(data)} bytes")
    return number, Answer(kind, data)


def _parameter(word: bytes) -> tuple[str, str]:
    name, _, value = word.partition(b"=")
    return name.decode("utf-8", "replace"), _unescaped(value).decode("utf-8", "replace")


def _unescaped(value: bytes) -> bytes:
    return _ESCAPED.sub(lambda found: _ESCAPES.get(found[1], found[1]), value)


def _escaped(value: str) -> bytes:
    octets = value.encode("utf-8", "backslashreplace")
    return _TO_ESCAPE.sub(lambda found: _ESCAPE_OF[found[0]], octets)


# -- requests ----------------------------------------------------------------------------------


def begin(
    number: int, mechanism: str, parameters: Mapping[str, str], response: bytes | None
) -> bytes:
    """Return the line that begins a request.

    :param parameters: parameters by name; "" means no value
    :param response: the client's initial response; None if it sent none
    """
    words = [b"AUTH", b"%d" % number, mechanism.encode()]
    for name, value in parameters.items():
        words.append(name.encode() + (b"=" + _escaped(value) if value else b""))
    if response is not None:  # has to be the last parameter
        words.append(b"resp=" + b64encode(response))
    return b"\t".join(words) + b"\n"


def respond(number: int, response: bytes) -> bytes:
    """Return the line with the client's response to a challenge."""
    return b"CONT\t%d\t%s\n" % (number, b64encode(response))


def cancel(number: int) -> bytes:
    """Return the line that cancels a request."""
    return b"CANCEL\t%d\n" % number
