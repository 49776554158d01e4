"""Conversation: what is said to Dovecot's authentication service. Sans-io: no socket, no clock.

The protocol is Dovecot's "Authentication Protocol v1.2": lines of words with tabs between them. The
service begins with its mechanisms and ends that with DONE. Then any number of requests goes on at
once, each with a number; an answer has the number of its request. Lines of unknown commands are
skipped, as the protocol wants it.
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
"""Octets of a line: Dovecot 2.3 ends the connection, which others use as well, at a longer one."""

LONGEST_LINE = 1 << 16
"""Octets of a line of Dovecot's. A challenge for a client has 12 KiB at most."""

LONGEST_CHALLENGE = 12288 * 3 // 4
"""Octets of a challenge before its base64, as long as a line of AUTH may be (RFC 4954 4)."""

MOST_LINES = 1000
"""Lines before DONE, and lines that say nothing between two answers."""

MOST_MECHANISMS = 50

_NAME = re.compile(rb"[A-Z0-9_-]{1,20}")
"""The name of a mechanism (RFC 4422 3.1)."""

_NUMBER = re.compile(rb"[0-9]{1,10}")
_ESCAPES = {b"0": b"\0", b"1": b"\1", b"t": b"\t", b"r": b"\r", b"n": b"\n"}
_ESCAPED = re.compile(rb"\x01(.?)", re.DOTALL)
_TO_ESCAPE = re.compile(rb"[\x00\x01\t\r\n]")
_ESCAPE_OF = {octet: b"\1" + letter for letter, octet in _ESCAPES.items()}


class DovecotGarbageError(ValueError):
    """Dovecot, or what listens in its place, says what is not the protocol."""


class Mechanism(NamedTuple):
    """A mechanism on offer.

    :ivar plaintext: whether a listener learns enough to authenticate: the password, or a token
    """

    name: str
    plaintext: bool = False


class Kind(Enum):
    """What an answer means."""

    OK = b"OK"
    FAIL = b"FAIL"
    CONTINUE = b"CONT"


class Answer(NamedTuple):
    """An answer to a request.

    :ivar data: the challenge, of CONTINUE
    :ivar parameters: of OK and FAIL, as text; one without a value has the value ""
    """

    kind: Kind
    data: bytes = b""
    parameters: Mapping[str, str] = {}

    @property
    def user(self) -> str:
        """The user, as Dovecot names it; empty if it does not."""
        return self.parameters.get("user", "")

    def says(self, word: str) -> bool:
        """Whether a failure is of that kind: ``temp``, ``authz``, ``user_disabled``, ..."""
        code = self.parameters.get("code", "")
        return word in self.parameters or code in {word, f"{word}_fail"}


class Conversation:
    """What is said on one connection.

    :param client: a number that no other client of the service has
    :ivar ready: whether the service has said all about itself
    :ivar mechanisms: those on offer, in the order of Dovecot's configuration
    """

    def __init__(self, client: int) -> None:
        self.greeting = VERSION + b"CPID\t%d\n" % client
        self.ready = False
        self.mechanisms: list[Mechanism] = []
        self._version = False
        self._held = bytearray()
        self._idle_lines = 0

    @property
    def held(self) -> int:
        """Octets that came and are no whole line."""
        return len(self._held)

    def receive(self, data: bytes) -> Iterator[tuple[int, Answer]]:
        """Yield the answers that are complete with *data*, each with the number of its request.

        Any split of a stream gives the same ones.

        :raises DovecotGarbageError: it is not the protocol
        """
        self._held += data
        start = 0
        try:
            while (end := self._held.find(b"\n", start)) >= 0:
                line, start = bytes(self._held[start:end]), end + 1
                answer = self._line(line)
                if answer is not None:
                    yield answer
        finally:
            del self._held[:start]
        if len(self._held) > LONGEST_LINE:
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
            raise DovecotGarbageError(f"it sends more than {MOST_LINES} lines that say nothing")
        return None

    def _opening(self, command: bytes, words: list[bytes]) -> None:
        if not self._version:
            if command != b"VERSION" or not words or words[0] != b"1":
                raise DovecotGarbageError("it is no authentication service of version 1")
            self._version = True
        elif command == b"MECH" and words and _NAME.fullmatch(words[0]):
            if len(self.mechanisms) >= MOST_MECHANISMS:
                raise DovecotGarbageError(f"it has more than {MOST_MECHANISMS} mechanisms")
            self.mechanisms.append(Mechanism(words[0].decode(), b"plaintext" in words[1:]))
        elif command == b"DONE":
            self.ready, self._idle_lines = True, 0


def _answer(kind: Kind, words: list[bytes]) -> tuple[int, Answer]:
    if not words or not _NUMBER.fullmatch(words[0]):
        raise DovecotGarbageError("an answer of it has no number")
    number = int(words[0])
    if kind is not Kind.CONTINUE:
        return number, Answer(kind, parameters=dict(map(_parameter, words[1:])))
    try:
        data = b64decode(words[1] if len(words) > 1 else b"", validate=True)
    except Base64Error:
        raise DovecotGarbageError("a challenge of it is not base64") from None
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

    :param parameters: by name; one without a value has the value ""
    :param response: the client's initial response; None: it gave none
    """
    words = [b"AUTH", b"%d" % number, mechanism.encode()]
    for name, value in parameters.items():
        words.append(name.encode() + (b"=" + _escaped(value) if value else b""))
    if response is not None:  # it has to be the last one
        words.append(b"resp=" + b64encode(response))
    return b"\t".join(words) + b"\n"


def go_on(number: int, response: bytes) -> bytes:
    """Return the line with the client's response to a challenge."""
    return b"CONT\t%d\t%s\n" % (number, b64encode(response))


def cancel(number: int) -> bytes:
    """Return the line that ends a request which the client has given up."""
    return b"CANCEL\t%d\n" % number
