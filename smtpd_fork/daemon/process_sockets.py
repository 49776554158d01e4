"""The listening sockets of another process, from proc(5)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

__all__ = ["listening_sockets"]

_LISTENS = "0A"
"""TCP_LISTEN in /proc/net/tcp."""

_INODE = 9
"""Column of the inode in /proc/net/tcp."""

_UNIX_PATH = 7
"""Column of the path in /proc/net/unix; the column before it is the inode."""


def listening_sockets(pid: int) -> set[int | str]:
    """Return the TCP ports and the paths of unix sockets on which process *pid* listens.

    :raises PermissionError: the process belongs to another user
    """
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            inodes.add(str(entry.readlink()).removeprefix("socket:[").removesuffix("]"))
    found: set[int | str] = set()
    for name in ("tcp", "tcp6"):
        for words in _table(pid, name):
            if words[3] == _LISTENS and words[_INODE] in inodes:
                found.add(int(words[1].rpartition(":")[2], 16))
    for words in _table(pid, "unix"):
        if len(words) > _UNIX_PATH and words[_UNIX_PATH - 1] in inodes:
            found.add(" ".join(words[_UNIX_PATH:]))
    return found


def _table(pid: int, name: str) -> list[list[str]]:
    """Return the rows of a table of sockets without its heading; empty if it does not exist."""
    try:
        text = Path(f"/proc/{pid}/net/{name}").read_text("utf-8", "replace")
    except FileNotFoundError:
        return []
    return [line.split() for line in text.splitlines()[1:]]
