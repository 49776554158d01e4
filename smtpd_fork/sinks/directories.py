"""Directories of mailboxes: opened, and made, without following what their owner may have planted.

Components that hold a word of an address, and all below them, may belong to the mailbox's owner,
who could put a symbolic link there that leads to another's files. They are opened one by one,
each below the one before (openat(2)), and a symbolic link is an error: ELOOP or ENOTDIR.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

__all__ = ["DIRECTORY_MODE", "make_below", "make_directory", "open_below", "open_directory"]

DIRECTORY_MODE = 0o700

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@contextmanager
def open_directory(path: str | os.PathLike[str]) -> Iterator[int]:
    """Open a directory, to sync it, for a block."""
    descriptor = os.open(path, _FLAGS)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def open_below(root: str | os.PathLike[str] | int, names: Sequence[str]) -> Iterator[int]:
    """Open a directory, for a block, without following symbolic links below *root*.

    :param root: a path, or a directory that is open
    :param names: the components below it
    :raises OSError: as open(2); ELOOP or ENOTDIR if a component is a symbolic link
    """
    path, above = (".", root) if isinstance(root, int) else (root, None)
    descriptor = os.open(path, _FLAGS, dir_fd=above)
    try:
        for name in names:
            below = os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def make_below(directory: int, names: Sequence[str]) -> None:
    """Make the directories that are not there, and have each of them on the disk.

    Those that are there are synced as well: another thread may have made them a moment ago.

    :param directory: is open
    :raises OSError: as mkdir(2) and open(2)
    """
    for depth, name in enumerate(names):
        with open_below(directory, names[:depth]) as above:
            make_directory(above, name)


def make_directory(above: int, name: str) -> None:
    """Make a directory, unless it is there, and have it on the disk."""
    with suppress(FileExistsError):
        os.mkdir(name, DIRECTORY_MODE, dir_fd=above)
    os.fsync(above)
