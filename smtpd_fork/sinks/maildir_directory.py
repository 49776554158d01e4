"""MaildirDirectory: the files and directories of a Maildir, for the threads that write.

The Maildir of a recipient is below a directory that the administrator has configured. The rest of
its path comes from the address, so symbolic links in it are not followed
(:mod:`smtpd_fork.sinks.directories`).
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
"""Seconds without access after which a file in ``tmp/`` is removed (maildir(5))."""

CLEAN_FILES = 10_000
"""Maximum files that one search checks, which takes less than a second."""


class NoMailboxError(FileNotFoundError):
    """The mailbox of a recipient does not exist, and ``create`` is off."""


class OpenMaildir:
    """A Maildir whose ``new/`` is open.

    :param new: descriptor of ``new/``
    :param tmp: descriptor of ``tmp/``; None: files are renamed by *path*
    :param path: path of the Maildir with a final ``/``; empty if *tmp* is used
    """

    def __init__(self, new: int, tmp: int | None = None, path: str = "") -> None:
        self._new, self._tmp = new, tmp
        # Strings, because making four Path objects would double the time per message.
        self._from, self._to = (f"{path}tmp/", f"{path}new/") if path else ("", "")

    def publish(self, name: str) -> None:
        """Move a file from ``tmp/`` to ``new/``."""
        if self._tmp is None:
            os.rename(self._from + name, self._to + name)  # noqa: PTH104 - see __init__
        else:
            os.rename(name, name, src_dir_fd=self._tmp, dst_dir_fd=self._new)

    def sync(self) -> None:
        """Sync ``new/`` to disk."""
        os.fsync(self._new)


class MaildirDirectory:
    """A Maildir that the administrator has configured; symbolic links in its path are followed.

    :param path: the absolute path
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def create(self, name: str) -> int:
        """Create a file in ``tmp/``; return its descriptor."""
        return os.open(f"{self.path}/tmp/{name}", _NEW_FILE, FILE_MODE)  # noqa: S108 - the Maildir's

    @contextmanager
    def opened(self) -> Iterator[OpenMaildir]:
        """Open the Maildir for the duration of a block, to publish files."""
        with self._directory("new") as new:
            yield OpenMaildir(new, None, f"{self.path}/")

    def remove(self, name: str) -> None:
        """Remove the files of a message that was given up from ``tmp/`` and ``new/``.

        May run in two threads, and while another thread hangs in a step. The file in ``tmp/`` is
        removed first, so that a later rename fails.
        """
        for directory in ("tmp", "new"):
            try:
                self._unlink(directory, name)
            except FileNotFoundError:
                continue
            except OSError as error:
                log.error(  # noqa: TRY400 - an error of the disk
                    "cannot remove the unacknowledged message %s: %s",
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
        """Open ``tmp/`` for the duration of a block, unless it is a symbolic link.

        Otherwise the owner of a Maildir could have us remove files in other directories.
        """
        return open_below(self.path, ["tmp"])


class RecipientMaildir(MaildirDirectory):
    """The Maildir of a recipient. Symbolic links in it, and in its path below *root*, are errors.

    :param root: the directory that contains all Maildirs; it has to exist
    :param names: the components of the path below *root*
    :param create: whether a missing Maildir is created
    :param optional: whether the last of *names* is omitted if it does not exist
    """

    def __init__(
        self, root: str, names: tuple[str, ...], *, create: bool, optional: bool = False
    ) -> None:
        super().__init__("/".join((root.rstrip("/"), *names)))
        self._root, self._names, self._create = root, names, create
        self._choices = [names, names[:-1]] if optional else [names]

    def create(self, name: str) -> int:
        """Create a file in ``tmp/``, and the Maildir if it is missing; return the descriptor.

        :raises NoMailboxError: the Maildir does not exist, and is not to be created
        """
        if not self._is_complete():
            if not self._create and not self.exists():
                raise NoMailboxError(errno.ENOENT, "no such Maildir")
            self._make()
        with self._directory("tmp") as tmp:
            return os.open(name, _NEW_FILE | os.O_NOFOLLOW, FILE_MODE, dir_fd=tmp)

    def exists(self) -> bool:
        """Return whether the Maildir exists; its subdirectories are created with the first message.

        :raises OSError: it is not known; ENODEV if the root is empty, because its file system may
            not be mounted
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
        """Create the Maildir; ``cur/`` is created last, after the others are on disk."""
        with open_directory(self._root) as root:
            make_below(root, self._names)
            with open_below(root, self._names) as maildir:
                make_directory(maildir, "tmp")
                make_directory(maildir, "new")
                with suppress(FileExistsError):
                    os.mkdir("cur", DIRECTORY_MODE, dir_fd=maildir)

    @contextmanager
    def opened(self) -> Iterator[OpenMaildir]:
        """Open the Maildir for the duration of a block, to publish files."""
        with self._directory("tmp") as tmp, self._directory("new") as new:
            yield OpenMaildir(new, tmp)

    def _unlink(self, directory: str, name: str) -> None:
        with self._directory(directory) as descriptor:
            os.unlink(name, dir_fd=descriptor)

    def _directory(self, name: str) -> AbstractContextManager[int]:
        return open_below(self._root, (*self._names, name))

    def opened_tmp(self) -> AbstractContextManager[int]:
        """Open ``tmp/`` for the duration of a block."""
        return self._directory("tmp")


def _has_entries(root: str) -> bool:
    with os.scandir(root) as entries:
        return any(entry.name != "lost+found" for entry in entries)


def remove_stale(maildir: MaildirDirectory) -> None:
    """Remove old files of interrupted deliveries from ``tmp/``.

    Files of other users are not removed, and a ``tmp/`` that is a symbolic link is ignored.
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
