"""RuleFile: a text file written by the administrator, read in blocks.

A reload reads files in a thread while sessions continue. Python runs one thread at a time and does
not interrupt a function in C, so splitting or decoding a file of 100 MB in one call would block the
event loop.
"""

from __future__ import annotations

import os
import stat
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path

from smtpd_fork.errors import HandlerError

__all__ = ["RuleFile"]

PIECE = 1 << 18
"""Bytes of a block; a function in C handles one in about 1 ms."""

LONGEST_LINE = 1 << 20
"""Maximum bytes of a rule with its continuation lines: an alias of 30,000 addresses."""

LONGEST_SHOWN = 60
"""Maximum characters of a line in an error message."""

_BLANKS = (" ", "\t")


class RuleFile:
    """A file of rules.

    :param name: the path, absolute or relative to the current directory
    """

    def __init__(self, name: str) -> None:
        self.name = name
        # Made absolute now, because a daemon changes its working directory to / later.
        self.path = Path(name).expanduser().absolute()

    @property
    def signature(self) -> tuple[int, ...]:
        """Device, inode, size and time of change, to detect changes; empty if there is no file."""
        try:
            found = self.path.stat()
        except OSError:
            return ()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def rules(self) -> Iterator[tuple[int, str]]:
        """Yield each rule with the number of its first line; a rule may end with blanks.

        :raises HandlerError: the file cannot be read, is not UTF-8, has a line that is too long, or
            a continuation line without a rule
        """
        for first, text in self._pieces():
            lines = text.split("\n")
            if text[:1] in _BLANKS or "\n " in text or "\n\t" in text:
                yield from self._joined(first, lines)
            else:
                for number, line in enumerate(lines, first):
                    if line and line[0] not in "#\r":
                        yield number, line

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yield all lines with their numbers, in a file without continuation lines.

        :raises HandlerError: the file cannot be read, or is not UTF-8
        """
        for first, text in self._pieces():
            yield from enumerate(text.split("\n"), first)

    def _joined(self, first: int, lines: list[str]) -> Iterator[tuple[int, str]]:
        """Yield rules; join each line that begins with a blank to the previous line."""
        number, rule = 0, ""
        for at, line in enumerate(lines, first):
            text = line.strip(" \t\r")
            if rule and text and line[0] in _BLANKS:
                rule += f" {text}"
                continue
            if rule:
                yield number, rule
            number, rule = at, "" if text.startswith("#") else text
            if rule and line[0] in _BLANKS:
                raise self.error(at, text, "the line begins with a blank, but continues no rule")
        if rule:
            yield number, rule

    def _pieces(self) -> Iterator[tuple[int, str]]:
        """Yield the text in blocks of complete rules, each with the number of its first line."""
        first, rest = 1, b""
        for data in self._read():
            rest += data
            end = _end_of_rules(rest)
            if end:
                yield first, self._decoded(rest[: end - 1], first)
                first += rest.count(b"\n", 0, end)
                rest = rest[end:]
            elif len(rest) > LONGEST_LINE:
                raise self.error(first, "", f"the line is longer than {LONGEST_LINE} bytes")
        yield first, self._decoded(rest, first)

    def error(self, line: int, text: str, reason: object) -> HandlerError:
        """Return the error of a line: ``recipients.map, line 3: 'x': reason``."""
        shown = f" {text[:LONGEST_SHOWN]!r}:" if text else ""
        return HandlerError(f"{self.name}, line {line}:{shown} {reason}")

    def _read(self) -> Iterator[bytes]:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 - of a descriptor
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    # Reading a pipe would never end.
                    raise HandlerError(f"{self.name} is not a regular file")
                while data := file.read(PIECE):
                    yield data
        except OSError as error:
            raise HandlerError(f"cannot read {self.name}: {error.strerror}") from None

    def _decoded(self, data: bytes, first: int) -> str:
        try:
            # Not with "utf-8-sig": Python imports that codec, and may not be able to read its file
            # after dropping privileges.
            return (data.removeprefix(BOM_UTF8) if first == 1 else data).decode()
        except UnicodeDecodeError as error:
            line = first + data.count(b"\n", 0, error.start)
            reason = f"the line is not UTF-8 (byte {data[error.start]:#04x})"
            raise self.error(line, "", reason) from None


def _end_of_rules(data: bytes) -> int:
    """Return the position of the last line that is not a continuation line; 0 if there is none."""
    end = data.rfind(b"\n", 0, len(data) - 1)
    while end >= 0 and data[end + 1] in b" \t":
        end = data.rfind(b"\n", 0, end)
    return end + 1
