"""Transcripts: commands of a page and their output, compared with the real output."""

from __future__ import annotations

import re
import shlex
import sys
from typing import NamedTuple

_PROMPTS = ("$ ", "# ")

_ANY_LINES = r"(?:.*\n)*?"

_LOOKS = re.compile(
    r"(?:cat|curl|find|grep|head|journalctl|ls|mailq|postqueue|ps|ss|stat|tail|wc|systemctl status"
    r"|smtpd-fork (?:status|sessions|explain))\b[^;&<>]*$"
)
"""Commands that change nothing."""

_LOOSE = (
    (re.escape(sys.prefix), ".venv"),
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?", "TIME"),
    (r"[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}", "TIME"),
    (r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d", "TIME"),
    (r"[A-Z][a-z]{2}, [ \d]?\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d [+-]\d{4}", "DATE"),
    (r"\b(?:[0-9a-f]+-)+[0-9a-f]+\b", "ID"),
    (r"\b[0-9A-F]{10,}\b", "ID"),  # Postfix's
    (r"\bpid(?: |=|: )\d+", "pid N"),
    (r"\bsmtpd-fork\[\d+\]", "smtpd-fork[N]"),
    (r"\bprocess \d{2,}\b", "process N"),
    (r"\bsize=\d+", "size=N"),
    (r"\b\d+(?:\.\d+)? ?(s|ms|us|bytes|KiB|MiB|GiB)\b", r"N \1"),
    (r"(?<![\d.])\d+\.\d+(?![\d.])", "N"),
    (r"\b\d{5,}\b", "N"),
)
"""Texts that differ in each run: patterns, and their replacements on both sides."""


class Command(NamedTuple):
    """One command of a console block.

    :ivar line: its line number on the page
    :ivar text: the command
    :ivar shown: the output on the page
    """

    line: int
    text: str
    shown: str

    @property
    def is_background(self) -> bool:
        return self.text.rstrip().endswith("&")

    @property
    def only_looks(self) -> bool:
        """Whether it may be repeated."""
        return _LOOKS.match(self.text) is not None


def commands_of(text: str, first_line: int) -> list[Command]:
    """Return the commands of a console block.

    The first line begins with the prompt. A command continues behind a backslash, and on
    lines that begin with ``> ``, as a shell shows it.

    :raises ValueError: the first line has no prompt
    """
    lines = text.splitlines()
    prompt = lines[0][:2] if lines else ""
    if prompt not in _PROMPTS:
        raise ValueError("the first line of a console block begins with `$ ` or `# `")
    found: list[tuple[int, list[str], list[str]]] = []
    for number, line in enumerate(lines, first_line):
        if line.startswith(prompt):
            found.append((number, [line.removeprefix(prompt)], []))
            continue
        _, typed, shown = found[-1]
        if not shown and typed[-1].endswith("\\"):
            typed.append(line)
        elif not shown and re.match(r">( |$)", line):
            typed.append(line[2:])
        else:
            shown.append(line)
    return [Command(line, "\n".join(typed), "\n".join(shown)) for line, typed, shown in found]


_BEFORE_A_COMMAND = re.compile(r"!|\{|do|else|elif|if|then|time|until|while")
_OF_THE_SHELL = re.compile(
    r"[:.[!{}]|case|cd|do|done|echo|elif|else|esac|eval|exec|exit|export|false|fi|for|if|kill|printf"
    r"|pwd|read|set|shift|source|test|then|time|trap|true|umask|until|wait|while"
)
_ENDS_A_COMMAND = re.compile(r"[;&|()\n]+")
_REDIRECTS = re.compile(r"[<>]+[&|]?")


_INNER = re.compile(r"\$\(([^()]*)\)")
"""A command substitution within a quoted word."""


def programs_of(text: str) -> set[str]:
    """Return the names of the programs that a command of a page calls.

    These include programs in pipes, lists, subshells and ``$(...)``, but neither builtins of the
    shell nor programs that are called by a path.
    """
    lexer = shlex.shlex(text.replace("\\\n", " "), posix=False, punctuation_chars=";&|()<>\n")
    lexer.whitespace, lexer.commenters = " \t", ""
    found, begins, skips = set(), True, False
    for word in lexer:
        if skips or _REDIRECTS.fullmatch(word):  # the redirection, and then its file
            skips = not skips
        elif _ENDS_A_COMMAND.fullmatch(word):
            begins = True
        elif begins and not re.match(r"\w+=", word):
            begins = _BEFORE_A_COMMAND.fullmatch(word) is not None
            if re.fullmatch(r"[\w.+-]+", word) and not _OF_THE_SHELL.fullmatch(word):
                found.add(word)
        found |= {name for inner in _INNER.findall(word) for name in programs_of(inner)}
    return found


def loosened(text: str) -> str:
    """Return *text* with the texts that differ in each run replaced by words."""
    for pattern, word in _LOOSE:
        text = re.sub(pattern, word, text)
    return text


def is_as_shown(printed: str, shown: str) -> bool:
    """Return whether *printed* matches the page, where ``...`` stands for any text or lines."""
    pattern = ""
    for line in _lines(shown):
        if line == "...":
            pattern += _ANY_LINES
        else:
            pattern += ".*".join(map(re.escape, line.split("..."))) + "\n"
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in _lines(printed))) is not None


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in loosened(text.replace("\r", "")).splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    while lines and not lines[0]:
        lines.pop(0)
    return lines
