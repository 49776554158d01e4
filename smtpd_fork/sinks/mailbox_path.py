"""MailboxPath: the path of a recipient's mailbox, with ``{user}``, ``{domain}`` and ``{ext}``.

Addresses are untrusted. Each word of an address, in the form in which addresses are compared
(:mod:`smtpd_fork.message.mailbox`), becomes a part of one component of the path. The characters
``[a-z0-9._+=-]`` stay as they are; any other byte, and a leading dot, becomes ``%`` and two
hexadecimal digits. So a word can contain neither ``/``, ``..`` nor NUL. The encoding is reversible,
so that one mailbox has one path, and two mailboxes never have the same path.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from smtpd_fork.message.mailbox import mailbox_of
from smtpd_fork.setting_types import SettingError

__all__ = ["WORDS", "MailboxPath", "Words", "fill", "words_in", "words_of"]

LONGEST_NAME = 200
"""Maximum bytes of a word in a path; file systems allow 255 bytes for a whole component."""

WORDS = ("user", "domain", "ext")

EMPTY = "%"
"""Replaces an empty word, such as the domain of ``postmaster``."""

_WORD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_PLAIN = re.compile(r"[a-z0-9_+=-][a-z0-9._+=-]*")
_CODED = re.compile(rb"[^a-z0-9._+=-]|^\.")
_EXTENSION = re.compile(r"\.\{ext\}")
_CANNOT_BE_CODED = re.compile(r"[^a-z0-9._+=%-]")


class Words(NamedTuple):
    """The words of an address: in lower case, without quotes, the domain in ASCII.

    :ivar user: the local part without the extension
    :ivar domain: the domain, or an empty string
    :ivar ext: the extension without the delimiter, or an empty string
    """

    user: str
    domain: str
    ext: str


def words_of(address: str, delimiter: str) -> Words:
    """Return the words of an address.

    The extension begins after the first *delimiter* that is not the first character; with an empty
    delimiter there are no extensions.
    """
    _, local, domain = mailbox_of(address)
    split = local.find(delimiter, 1) if delimiter else -1
    if split < 0:
        return Words(local, domain, "")
    return Words(local[:split], domain, local[split + len(delimiter) :])


def words_in(template: str, known: tuple[str, ...], key: str) -> list[str]:
    """Return the words in braces of a template, in order.

    :param key: the name of the setting, for the error
    :raises SettingError: a word is not *known*, or there is an unmatched brace
    """
    found = []
    for match in _WORD.finditer(template):
        word = match[1]
        if word in known:
            found.append(word)
        elif word is not None:
            near = get_close_matches(word, known, 1, 0.5)
            hint = f"did you mean {{{near[0]}}}?" if near else "known words are " + _listed(known)
            raise SettingError(key, template, f"unknown {{{word}}}; {hint}")
        elif match[0] in {"{", "}"}:
            raise SettingError(key, template, f"write {match[0] * 2} for a brace")
    return found


def _listed(known: tuple[str, ...]) -> str:
    return ", ".join(f"{{{word}}}" for word in known)


def fill(template: str, values: Mapping[str, str]) -> str:
    """Return a template with its words replaced by *values*, and double braces by single ones."""
    return _WORD.sub(lambda match: match[0][0] if match[1] is None else values[match[1]], template)


def _coded(word: str) -> str:
    """Return a word as a part of a file name; different words never become the same."""
    if _PLAIN.fullmatch(word) and len(word) <= LONGEST_NAME:
        return word
    if not word:
        return EMPTY
    octets = word.encode("utf-8", "surrogatepass")
    coded = _CODED.sub(lambda match: b"%%%02x" % match[0][0], octets).decode()
    if len(coded) <= LONGEST_NAME:
        return coded
    mark = "%%" + hashlib.sha256(octets).hexdigest()  # no coded word has two % in sequence
    return coded[: LONGEST_NAME - len(mark)] + mark


class MailboxPath:
    """The path of mailboxes.

    :param template: a path; ``{user}``, ``{domain}`` and ``{ext}`` are replaced by words of the
        address. ``{{`` is a brace. A component ``.{ext}`` is omitted for addresses without an
        extension
    :param delimiter: the delimiter of user and extension; empty: there are no extensions
    :ivar root: the directory that contains all mailboxes; the mailbox itself if there are no words
    :ivar varies: whether the path depends on the recipient
    :raises SettingError: a word is unknown, or two words cannot be distinguished in the path
    """

    def __init__(self, template: str | os.PathLike[str], *, delimiter: str = "+") -> None:
        text = os.fspath(template)
        if not text or "\0" in text:
            raise SettingError("path", text, "expected a path")
        self.varies = bool(words_in(text, WORDS, "path"))
        self._delimiter = delimiter
        if not self.varies:
            self.root, self._below = _absolute(text), list[str]()
            return
        parts = text.split("/")
        first = next(i for i, part in enumerate(parts) if words_in(part, WORDS, "path"))
        self.root = _absolute("/".join(parts[:first]) + "/" if first else ".")
        self._below = [part for part in parts[first:] if part not in {"", "."}]
        self.template = f"{self.root}/{'/'.join(self._below)}".replace("//", "/")
        if ".." in self._below:
            raise SettingError("path", text, ".. is not allowed after a word in braces")
        for part in self._below:
            _check_component(part, text)

    def names(self, address: str) -> tuple[str, ...]:
        """Return the components below :attr:`root` of a recipient's path."""
        words = words_of(address, self._delimiter)
        coded = {name: _coded(word) for name, word in zip(WORDS, words, strict=True)}
        return tuple(
            fill(part, coded) for part in self._below if words.ext or not _EXTENSION.fullmatch(part)
        )

    def ends_with_extension(self, names: tuple[str, ...]) -> bool:
        """Return whether the last component of a path comes from ``.{ext}``."""
        return len(names) == len(self._below) and _EXTENSION.fullmatch(self._below[-1]) is not None

    def __str__(self) -> str:
        return self.template if self.varies else str(self.root)


def _absolute(text: str) -> Path:
    # Made absolute now, because a daemon changes its working directory to / later.
    plain = text.replace("{{", "{").replace("}}", "}")
    return Path(plain).expanduser().absolute()


def _check_component(part: str, template: str) -> None:
    """Check that the words of a component can be distinguished.

    :raises SettingError: they cannot be distinguished
    """
    between = _WORD.split(part)[::2][1:-1]
    if any(not _CANNOT_BE_CODED.search(text) for text in between):
        raise SettingError(
            "path",
            template,
            f"{part}: write / or @ between the words, so that no two mailboxes have the same path",
        )
