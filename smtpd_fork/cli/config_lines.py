"""Find the lines of the keys in a configuration file, for error messages.

:mod:`tomllib` does not return positions, and the known libraries do not either (tomlkit keeps
none). Therefore tomllib reads the file again here, statement by statement.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["lines_of_keys"]

_CLOSES = re.compile(r"\]|\"\"\"|'''")
"""The last line of a statement with several lines has one of these."""


def lines_of_keys(text: str) -> dict[str, int]:
    """Return the line number of each key in *text*, which is valid TOML.

    Keys have the form of error messages: ``gate.rate``, ``listener 2: port``. Ambiguous keys, such
    as ``gate.rate`` and a quoted ``"gate.rate"``, are omitted.
    """
    found: dict[str, int] = {}
    ambiguous: set[str] = set()
    tables: dict[str, int] = {}  # arrays of tables, with the number of tables so far
    front = ""
    for line, statement, document in _statements(text):
        keys = list(_keys(document, front))
        if statement.lstrip().startswith("["):
            name, is_array = _header(document)
            if is_array:
                found.setdefault(name, line)
                tables[name] = tables.get(name, 0) + 1
                name = f"{name} {tables[name]}"
            keys, front = [name], f"{name}: " if is_array else f"{name}."
        for key in keys:
            if found.setdefault(key, line) != line:
                ambiguous.add(key)
    return {key: line for key, line in found.items() if key not in ambiguous}


def _statements(text: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield the line, the text and the parsed document of each statement."""
    statement, first = "", 0
    for number, line in enumerate(text.split("\n"), 1):
        first = first if statement else number
        statement += f"{line}\n"
        if number > first and not _CLOSES.search(line):
            continue
        try:
            document = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue  # the statement continues in the next line
        yield first, statement, document
        statement = ""


def _header(document: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the name of the table whose header is *document*, and whether it is in an array."""
    names, is_array = [], False
    node: Any = document
    while node:
        (name, node), *_ = node.items()
        names.append(name)
        if is_array := isinstance(node, list):
            (node,) = node
    return ".".join(names), is_array


def _keys(table: Mapping[str, Any], front: str) -> Iterator[str]:
    for name, value in table.items():
        key = f"{front}{name}"
        yield key
        if isinstance(value, dict):
            yield from _keys(value, f"{key}.")
        elif isinstance(value, list):
            for number, each in enumerate(value, 1):
                if isinstance(each, dict):
                    yield f"{key} {number}"
                    yield from _keys(each, f"{key} {number}: ")
