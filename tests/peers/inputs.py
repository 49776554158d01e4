"""The rows of docs/accepted-mail.md: each has an input, and shows how a server treats it."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from support.daemon import PATIENCE

from peers.servers import SIZE_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["INPUTS"]

MAIL, RCPT = b"MAIL FROM:<a@example.org>", b"RCPT TO:<b@example.com>"

_TEXT = b"Subject: x\r\n\r\n"

ENDLESS = 250
"""Repetitions after which an input counts as accepted without a limit."""


class Dialogue:
    """A client that sends EHLO, and stores the last reply."""

    def __init__(self, port: int, hello: bytes = b"EHLO client.example") -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self._file = self._sock.makefile("rb")
        self.reply()
        self.offers = self.say(hello).splitlines()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._sock.close()

    def reply(self) -> str:
        """Return a reply with all its lines; an empty one is the end of the connection."""
        lines: list[str] = []
        try:
            while line := self._file.readline().decode("latin-1"):
                lines.append(line)
                if line[3:4] != "-":
                    break
        except ConnectionError:
            return ""
        return "".join(lines)

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def say(self, command: bytes) -> str:
        try:
            self.send(command + b"\r\n")
        except ConnectionError:
            return ""
        return self.reply()

    def code(self, *commands: bytes) -> str:
        """Send commands; return the code of the last reply."""
        said = ""
        for command in commands:
            said = self.say(command)
        return said[:3]

    def message(self, content: bytes, mail: bytes = MAIL) -> str:
        """Send a message unchanged, and the end of data; return the code."""
        assert self.code(mail, RCPT, b"DATA") == "354"
        self.send(content + b".\r\n")
        return self.reply()[:3]

    def offer(self, name: str) -> str:
        return "offered" if any(line[4:].split()[:1] == [name] for line in self.offers) else "no"


def _message(content: bytes) -> Callable[[int], str]:
    def result(port: int) -> str:
        with Dialogue(port) as client:
            return client.message(content)

    return result


def _commands(*commands: bytes, hello: bytes = b"EHLO client.example") -> Callable[[int], str]:
    """Return a function whose result is the code of the last command."""

    def result(port: int) -> str:
        with Dialogue(port, hello) as client:
            return client.code(*commands)

    return result


def _offer(name: str) -> Callable[[int], str]:
    def result(port: int) -> str:
        with Dialogue(port) as client:
            return client.offer(name)

    return result


def _end(content: bytes) -> Callable[[int], str]:
    """Return a function whose result says whether *content* contains the end of a message."""

    def result(port: int) -> str:
        with Dialogue(port) as client:
            assert client.code(MAIL, RCPT, b"DATA") == "354"
            client.send(_TEXT + b"x" + content + b"NOOP\r\n.\r\n")
            replies = [client.reply()[:3]]
            with suppress(ConnectionError):
                client.send(b"QUIT\r\n")
            while replies[-1] not in {"221", ""}:
                replies.append(client.reply()[:3])
        if replies[0] != "250":
            return replies[0]
        # After an early end, NOOP and the dot are commands: there are more replies, or it closes.
        return "text" if replies == ["250", "221"] else "the end"

    return result


def _chunked(content: bytes, *, rcpt_after: bool = False) -> Callable[[int], str]:
    def result(port: int) -> str:
        with Dialogue(port) as client:
            if client.offer("CHUNKING") == "no":
                return "no BDAT"
            assert client.code(MAIL, RCPT) == "250"
            if not rcpt_after:
                client.send(b"BDAT %d LAST\r\n" % len(content) + content)
                return client.reply()[:3]
            client.send(b"BDAT %d\r\n" % len(content) + content)
            assert client.reply()[:3] == "250"
            return client.code(RCPT)

    return result


def _until_ended(*commands: bytes, first: bytes = b"NOOP") -> Callable[[int], str]:
    """Return a function that repeats *commands*; the result says how that ends."""

    def result(port: int) -> str:
        with Dialogue(port) as client:
            client.say(first)
            for turn in range(ENDLESS):
                for command in commands:
                    code = client.code(command)
                    if code in {"", "421"}:
                        return f"ended after {turn}"
        return "no end"

    return result


def _full_size(port: int) -> str:
    """Send as many octets as SIZE permits, in lines that begin with a dot."""
    stored = b"Subject: x\r\n\r\n" + b"." * 34 + b"\r\n"
    stored += (b"." * 48 + b"\r\n") * (SIZE_LIMIT // 50 - 1)
    assert len(stored) == SIZE_LIMIT
    with Dialogue(port) as client:
        mail = MAIL + b" SIZE=%d" % len(stored)
        return client.message(stored.replace(b"\r\n.", b"\r\n.."), mail)


def _enhanced(command: bytes) -> Callable[[int], str]:
    def result(port: int) -> str:
        with Dialogue(port) as client:
            word = ([*client.say(command).split(), "", ""])[1]
        return word if word[:1].isdigit() else "none"

    return result


def _lone_lf(port: int) -> str:
    with Dialogue(port) as client:
        client.send(b"NOOP\n")
        return client.reply()[:3]


INPUTS: dict[str, Callable[[int], str]] = {
    # -- messages
    "a line of 10,000 octets, by `DATA`": _message(_TEXT + b"x" * 10_000 + b"\r\n"),
    "a line of 10,000 octets, by `BDAT`": _chunked(_TEXT + b"x" * 10_000 + b"\r\n"),
    "a lone LF in a message": _message(_TEXT + b"x\ny\r\n"),
    "a lone CR in a message": _message(_TEXT + b"x\ry\r\n"),
    "NUL in a message": _message(_TEXT + b"x\0y\r\n"),
    "`LF . LF` in a message": _end(b"\n.\n"),
    "`LF . CR LF` in a message": _end(b"\n.\r\n"),
    "`CR LF . LF` in a message": _end(b"\r\n.\n"),
    "`CR . CR` in a message": _end(b"\r.\r"),
    "8-bit text without `BODY=8BITMIME`": _message(_TEXT + b"gr\xfc\xdfe\r\n"),
    "no header, only text": _message(b"text\r\n"),
    "an mbox line (`From x ...`) above the header": _message(b"From x Thu\r\n" + _TEXT),
    "a message as large as `SIZE` says, its lines with doubled dots": _full_size,
    "an empty message": _message(b""),
    # -- addresses
    "`MAIL FROM:user@host`, without angle brackets": _commands(b"MAIL FROM:a@example.org"),
    "`RCPT TO:user@host`, without angle brackets": _commands(MAIL, b"RCPT TO:b@example.com"),
    "`MAIL FROM: <user@host>`, a space after the colon": _commands(b"MAIL FROM: <a@example.org>"),
    "`MAIL FROM:` TAB `<user@host>`": _commands(b"MAIL FROM:\t<a@example.org>"),
    "`MAIL FROM:Name <user@host>`": _commands(b"MAIL FROM:Fred <a@example.org>"),
    "`MAIL FROM:<user@host> (comment)`": _commands(b"MAIL FROM:<a@example.org> (Fred)"),
    "`MAIL FROM:<postmaster>`": _commands(b"MAIL FROM:<postmaster>"),
    "`RCPT TO:<postmaster>`": _commands(MAIL, b"RCPT TO:<postmaster>"),
    '`MAIL FROM:<"a>b"@host>`': _commands(b'MAIL FROM:<"a>b"@example.org>'),
    "`MAIL FROM:<@relay:user@host>`, a source route": _commands(
        b"MAIL FROM:<@relay.example:a@example.org>"
    ),
    "`MAIL FROM:<user@host.>`": _commands(b"MAIL FROM:<a@example.org.>"),
    "`MAIL FROM:<user@a_b.example>`": _commands(b"MAIL FROM:<a@a_b.example>"),
    "a label of 64 octets in the domain": _commands(b"MAIL FROM:<a@" + b"x" * 64 + b".example>"),
    "`MAIL FROM:<user@[127.0.0.01]>`": _commands(b"MAIL FROM:<a@[127.0.0.01]>"),
    "`MAIL FROM:<user@[tag:foo]>`": _commands(b"MAIL FROM:<a@[tag:foo]>"),
    "an IPv6 literal without `IPv6:`": _commands(b"MAIL FROM:<a@[2001:db8:0:0:0:0:0:1]>"),
    "a UTF-8 address with `SMTPUTF8`": _commands("MAIL FROM:<ä@example.org> SMTPUTF8".encode()),
    "a UTF-8 address without `SMTPUTF8`": _commands("MAIL FROM:<ä@example.org>".encode()),
    "the enhanced code for a malformed sender": _enhanced(b"MAIL FROM:<@>"),
    "an unknown parameter of `MAIL`": _commands(MAIL + b" FOO=bar"),
    # -- commands
    "a command that ends with LF only": _lone_lf,
    "CR inside a command": _commands(b"NOOP a\rb"),
    "NUL inside a command": _commands(b"NOOP a\0b"),
    "`EHLO` with Latin-1": _commands(MAIL, hello=b"EHLO b\xfcro"),
    '`EHLO a"b`': _commands(MAIL, hello=b'EHLO a"b'),
    "`EHLO x;`": _commands(MAIL, hello=b"EHLO x;"),
    "`EHLO a_b`": _commands(MAIL, hello=b"EHLO a_b"),
    "`MAIL` without `EHLO`": _commands(MAIL, hello=b"NOOP"),
    "`VRFY word`": _commands(b"VRFY word"),
    "`VRFY user@host SMTPUTF8`": _commands(b"VRFY b@example.com SMTPUTF8"),
    "`RCPT` after the first `BDAT`": _chunked(_TEXT, rcpt_after=True),
    # -- sessions
    "repeated `MAIL`, `RCPT`, `RSET`": _until_ended(MAIL, RCPT, b"RSET"),
    "repeated rejected recipients": _until_ended(b"RCPT TO:<x@example.net>", first=MAIL),
    "repeated unknown commands": _until_ended(b"FOO"),
    "repeated `NOOP`": _until_ended(b"NOOP"),
    # -- extensions in the reply to EHLO
    "`CHUNKING`": _offer("CHUNKING"),
    "`BINARYMIME`": _offer("BINARYMIME"),
    "`SMTPUTF8`": _offer("SMTPUTF8"),
    "`DSN`": _offer("DSN"),
}
