"""Open and create directories of mailboxes without following symbolic links.

A component of a path that contains a part of an address, and everything below it, may belong to the
owner of the mailbox, who could create a symbolic link there to the files of another user. Therefore
components are opened one by one, each relative to the previous one (openat(2)), and a symbolic link
is an error: ELOOP or ENOTDIR.
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
    """Open a directory for the duration of a block, for example to sync it."""
    descriptor = os.open(path, _FLAGS)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def open_below(root: str | os.PathLike[str] | int, names: Sequence[str]) -> Iterator[int]:
    """Open a directory for the duration of a block; do not follow symbolic links below *root*.

    :param root: a path, or the descriptor of a directory
    :param names: the components below *root*
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
    """Create missing directories, and sync all of them to disk.

    Existing ones are synced as well, because another thread may have just created them.

    :param directory: the descriptor of the directory that contains the first one
    :raises OSError: as mkdir(2) and open(2)
    """
    for depth, name in enumerate(names):
        with open_below(directory, names[:depth]) as above:
            make_directory(above, name)


def make_directory(above: int, name: str) -> None:
    """Create a directory unless it exists, and sync it to disk."""
    with suppress(FileExistsError):
        os.mkdir(name, DIRECTORY_MODE, dir_fd=above)
    os.fsync(above)
