"""MaildirDirectory: one Maildir as files and directories, for the threads that write.

The Maildir of a recipient is below a directory that the administrator named, and parts of its path
come from the address: there no symbolic link is followed (:mod:`smtpd_fork.sinks.directories`).
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from smtpd_fork.sinks.directories import (
    DIRECTORY_MODE,
    make_below,
    make_directory,
    open_below,
    open_directory,
)

__all__ = ["MaildirDirectory", "NoMailboxError", "OpenMaildir", "RecipientMaildir", "remove_stale"]

log = logging.getLogger("smtpd_fork.maildir")

FILE_MODE = 0o600

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

STALE_SECONDS = 36 * 3600
"""A file in tmp/ that nobody has read or written for so long is nobody's (maildir(5))."""

CLEAN_FILES = 10_000
"""Files that one look takes: less than a second's work. The next look takes the rest."""


class NoMailboxError(FileNotFoundError):
    """The mailbox of a recipient does not exist, and is not to be made."""


class OpenMaildir:
    """A Maildir whose ``new/`` is open.

    :param new: ``new/``
    :param tmp: ``tmp/``; None if both are reached by *path*
    :param path: of the Maildir, with ``/`` at the end; empty if both are open
    """

    def __init__(self, new: int, tmp: int | None = None, path: str = "") -> None:
        self._new, self._tmp = new, tmp
        # Strings: four Paths take as long as the rest of a message's work in the event loop.
        self._from, self._to = (f"{path}tmp/", f"{path}new/") if path else ("", "")

    def publish(self, name: str) -> None:
        """Move a file from ``tmp/`` to ``new/``."""
        if self._tmp is None:
            os.rename(self._from + name, self._to + name)  # noqa: PTH104 - see __init__
        else:
            os.rename(name, name, src_dir_fd=self._tmp, dst_dir_fd=self._new)

    def sync(self) -> None:
        """Have the names in ``new/`` on the disk."""
        os.fsync(self._new)


class MaildirDirectory:
    """A Maildir that the administrator named; symbolic links in it are followed.

    :param path: absolute
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def create(self, name: str) -> int:
        """Return a new file in ``tmp/``, open."""
        return os.open(f"{self.path}/tmp/{name}", _NEW_FILE, FILE_MODE)  # noqa: S108 - the Maildir's

    @contextmanager
    def opened(self) -> Iterator[OpenMaildir]:
        """Open it for a block, to publish files."""
        with self._directory("new") as new:
            yield OpenMaildir(new, None, f"{self.path}/")

    def remove(self, name: str) -> None:
        """Remove a message that was given up: its draft, and what was published of it.

        May run in two threads, and while a third hangs in a step: the draft goes first, so a
        rename that is still to come fails.
        """
        for directory in ("tmp", "new"):
            try:
                self._unlink(directory, name)
            except FileNotFoundError:
                continue
            except OSError as error:
                log.error(  # noqa: TRY400 - the disk, not us
                    "cannot remove %s, which is not acknowledged: %s",
                    f"{self.path}/{directory}/{name}",
                    error.strerror,
                )
                continue
            if directory == "new":
                with suppress(OSError), self._directory("new") as descriptor:
                    os.fsync(descriptor)

    def _unlink(self, directory: str, name: str) -> None:
        os.unlink(f"{self.path}/{directory}/{name}")  # noqa: PTH108 - see OpenMaildir

    def _directory(self, name: str) -> AbstractContextManager[int]:
        return open_directory(f"{self.path}/{name}")

    def opened_tmp(self) -> AbstractContextManager[int]:
        """Open ``tmp/`` for a block, unless it is a symbolic link.

        The owner of a Maildir must not have us remove files elsewhere.
        """
        return open_below(self.path, ["tmp"])


class RecipientMaildir(MaildirDirectory):
    """The Maildir of a recipient. Symbolic links in it, and on the way to it, are errors.

    :param root: the directory that all of them are in; it has to be there
    :param names: the components of the path below it
    :param create: whether a Maildir that does not exist is made
    :param optional: whether the last of *names* is left out if that does not exist
    """

    def __init__(
        self, root: str, names: tuple[str, ...], *, create: bool, optional: bool = False
    ) -> None:
        super().__init__("/".join((root.rstrip("/"), *names)))
        self._root, self._names, self._create = root, names, create
        self._choices = [names, names[:-1]] if optional else [names]

    def create(self, name: str) -> int:
        """Return a new file in ``tmp/``, open; make the Maildir first if it is not there.

        :raises NoMailboxError: it is not there, and is not to be made
        """
        if not self._is_complete():
            if not self._create and not self.exists():
                raise NoMailboxError(errno.ENOENT, "no such Maildir")
            self._make()
        with self._directory("tmp") as tmp:
            return os.open(name, _NEW_FILE | os.O_NOFOLLOW, FILE_MODE, dir_fd=tmp)

    def exists(self) -> bool:
        """Whether the Maildir is there; what is missing in it is made when a message comes.

        :raises OSError: that cannot be known; ENODEV if there is nothing at all below the root,
            which may be a file system that is not mounted
        """
        for names in self._choices:
            with suppress(FileNotFoundError), open_below(self._root, names):
                self._names = names
                return True
        if not _has_entries(self._root):
            reason = f"{self._root} is empty: is its file system mounted?"
            raise OSError(errno.ENODEV, reason)
        return False

    def _is_complete(self) -> bool:
        with suppress(FileNotFoundError), open_below(self._root, self._names) as maildir:
            return stat.S_ISDIR(os.lstat("cur", dir_fd=maildir).st_mode)
        return False

    def _make(self) -> None:
        """Make the Maildir; ``cur/`` comes last, when the others are on the disk."""
        with open_directory(self._root) as root:
            make_below(root, self._names)
            with open_below(root, self._names) as maildir:
                make_directory(maildir, "tmp")
                make_directory(maildir, "new")
                with suppress(FileExistsError):
                    os.mkdir("cur", DIRECTORY_MODE, dir_fd=maildir)

    @contextmanager
    def opened(self) -> Iterator[OpenMaildir]:
        """Open it for a block, to publish files."""
        with self._directory("tmp") as tmp, self._directory("new") as new:
            yield OpenMaildir(new, tmp)

    def _unlink(self, directory: str, name: str) -> None:
        with self._directory(directory) as descriptor:
            os.unlink(name, dir_fd=descriptor)

    def _directory(self, name: str) -> AbstractContextManager[int]:
        return open_below(self._root, (*self._names, name))

    def opened_tmp(self) -> AbstractContextManager[int]:
        """Open ``tmp/`` for a block."""
        return self._directory("tmp")


def _has_entries(root: str) -> bool:
    with os.scandir(root) as entries:
        return any(entry.name != "lost+found" for entry in entries)


def remove_stale(maildir: MaildirDirectory) -> None:
    """Remove what interrupted deliveries have left in ``tmp/``: regular files of ours that are old.

    A ``tmp/`` that is a symbolic link is left alone, as are the files of other users.
    """
    old = time.time() - STALE_SECONDS
    removed = 0
    with suppress(OSError), maildir.opened_tmp() as directory, os.scandir(directory) as entries:
        for entry in itertools.islice(entries, CLEAN_FILES):
            with suppress(OSError):
                if _is_stale(entry.stat(follow_symlinks=False), old):
                    os.unlink(entry.name, dir_fd=directory)
                    removed += 1
    if removed:
        log.info("removed %d stale files from %s/tmp", removed, maildir.path)


def _is_stale(facts: os.stat_result, old: float) -> bool:
    own_file = stat.S_ISREG(facts.st_mode) and facts.st_uid == os.geteuid()
    return own_file and max(facts.st_atime, facts.st_mtime) < old
