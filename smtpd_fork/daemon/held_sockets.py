"""The sockets that another process listens on, as proc(5) has them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

__all__ = ["held_sockets"]

_LISTENS = "0A"
"""TCP_LISTEN in /proc/net/tcp."""

_INODE = 9
"""Column of the inode in /proc/net/tcp."""

_UNIX_PATH = 7
"""Column of the path in /proc/net/unix; the inode is the one before."""


def held_sockets(pid: int) -> set[int | str]:
    """Return the TCP ports and the paths of unix sockets that process *pid* listens on.

    :raises PermissionError: the process is another user's
    """
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            inodes.add(str(entry.readlink()).removeprefix("socket:[").removesuffix("]"))
    held: set[int | str] = set()
    for name in ("tcp", "tcp6"):
        for words in _table(pid, name):
            if words[3] == _LISTENS and words[_INODE] in inodes:
                held.add(int(words[1].rpartition(":")[2], 16))
    for words in _table(pid, "unix"):
        if len(words) > _UNIX_PATH and words[_UNIX_PATH - 1] in inodes:
            held.add(" ".join(words[_UNIX_PATH:]))
    return held


def _table(pid: int, name: str) -> list[list[str]]:
    """Return the rows of a table of sockets, without the head; none where there is no table."""
    try:
        text = Path(f"/proc/{pid}/net/{name}").read_text("utf-8", "replace")
    except FileNotFoundError:
        return []
    return [line.split() for line in text.splitlines()[1:]]
