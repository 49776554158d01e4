"""MboxFile: lock an mbox file, and append complete messages to it.

Both locks of Debian's policy are taken: fcntl(2) on the file, and a lock file ``NAME.lock``. The
code never waits for one lock while it holds the other, so that no deadlock is possible. A lock file
may be left by a killed program. It is removed if the process whose ID it contains does not exist,
or if it is :data:`STALE_SECONDS` old.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from smtpd_fork.sinks.directories import make_below, open_below, open_directory

if TYPE_CHECKING:
    from smtpd_fork.sinks.mbox_delivery import MboxDelivery

__all__ = ["LockedError", "MboxFile"]

log = logging.getLogger("smtpd_fork.mbox")

FILE_MODE = 0o600

STALE_SECONDS = 300
"""Age of a stale lock file, as in other programs (liblockfile)."""

RETRY_SECONDS = 0.05
"""First wait between attempts to lock; it doubles up to LONGEST_RETRY_SECONDS."""

LONGEST_RETRY_SECONDS = 0.5

NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}
"""Errors of link(2) on file systems without hard links: FAT, exFAT, some network file systems and
some of FUSE."""

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_STARTED = time.time()
"""Lock files of this process are younger than this time."""


class LockedError(OSError):
    """Another program has locked the mailbox until the timeout."""


class MboxFile:
    """An mbox file. A symbolic link, or a file with several hard links, is an error.

    :param root: a directory, which has to exist
    :param names: the components of the path below *root*; missing directories are created
    """

    def __init__(self, root: str, names: tuple[str, ...]) -> None:
        self._root, self._directories, self._name = root, names[:-1], names[-1]
        self.path = "/".join((root.rstrip("/"), *names))

    def append(self, group: Sequence[MboxDelivery], seconds: float) -> None:
        """Append messages; on return each message is stored, was given up, or has failed.

        :param seconds: timeout of waiting for the locks
        :raises LockedError: the file is still locked after the timeout
        :raises OSError: an error; messages that are not stored were removed from the file
        """
        with (
            self._directory() as directory,
            self._locked(directory, seconds, lambda: any(not m.given_up for m in group)) as file,
        ):
            self._append(file, directory, list(group))

    @contextmanager
    def _directory(self) -> Iterator[int]:
        with open_directory(self._root) as root:
            try:
                with open_below(root, self._directories):
                    pass
            except FileNotFoundError:
                make_below(root, self._directories)
            with open_below(root, self._directories) as directory:
                yield directory

    # -- locks ---------------------------------------------------------------------------------

    @contextmanager
    def _locked(self, directory: int, seconds: float, wanted: Callable[[], bool]) -> Iterator[int]:
        deadline, wait = time.monotonic() + seconds, RETRY_SECONDS
        while (descriptors := self._try_to_lock(directory)) is None:
            if not wanted() or time.monotonic() >= deadline:
                raise LockedError(errno.EAGAIN, f"{self.path} is locked by another program")
            # Neither lock can be waited for with a timeout. This is a thread of the writer.
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_RETRY_SECONDS)
        file, lock = descriptors
        try:
            yield file
        finally:
            try:
                self._remove_lock(directory, lock)
            finally:
                os.close(lock)
                os.close(file)

    def _try_to_lock(self, directory: int) -> tuple[int, int] | None:
        """Return descriptors of the mailbox and its lock file; None if another program has them."""
        file = os.open(self._name, _FLAGS, FILE_MODE, dir_fd=directory)
        try:
            self._check(os.fstat(file))
            if self._lock_file(file):
                there = os.stat(self._name, dir_fd=directory, follow_symlinks=False)
                if os.path.samestat(os.fstat(file), there):
                    lock = self._make_lock(directory)
                    if lock is not None:
                        return file, lock
        except FileNotFoundError:
            pass  # a mail reader has removed the file meanwhile
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        return None

    def _check(self, found: os.stat_result) -> None:
        """Check that the file is no link, which could lead to another mailbox.

        :raises PermissionError: it is a link, or not a regular file
        """
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            reason = f"{self.path} is not a regular file, or has several hard links"
            raise PermissionError(errno.EPERM, reason)

    @staticmethod
    def _lock_file(file: int) -> bool:
        try:
            if hasattr(fcntl, "F_OFD_SETLK"):
                # An open file description lock: unlike a lock of the process, it is kept when
                # another thread closes the same file (fcntl(2)).
                lock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
                fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
            else:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _make_lock(self, directory: int) -> int | None:
        name = f"{self._name}.lock"
        for _ in range(2):
            try:
                return self._link_lock(directory, name)
            except FileExistsError:
                # Only one program removes a stale lock file, because it holds the fcntl(2) lock.
                if not _is_stale(directory, name):
                    return None
                log.warning("removed the stale lock file %s.lock", self.path)
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)
        return None

    @staticmethod
    def _link_lock(directory: int, name: str) -> int:
        """Create the lock file together with its content, our process ID.

        Otherwise a daemon that is killed between creating and writing would leave an empty lock
        file, for which no program knows whether it is stale. Without hard links this is accepted.

        :raises FileExistsError: the lock file exists
        """
        draft = f"{name}.new"  # no other program uses it: we hold the fcntl(2) lock
        with suppress(FileNotFoundError):
            os.unlink(draft, dir_fd=directory)
        lock = _create_lock(directory, draft)
        try:
            os.link(draft, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException as error:
            os.close(lock)
            if isinstance(error, OSError) and error.errno in NO_HARD_LINKS:
                return _create_lock(directory, name)
            raise
        finally:
            with suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=directory)
        return lock

    def _remove_lock(self, directory: int, lock: int) -> None:
        name = f"{self._name}.lock"
        with suppress(FileNotFoundError):
            there = os.stat(name, dir_fd=directory, follow_symlinks=False)
            # Not the lock of another program that took ours for stale.
            if os.path.samestat(there, os.fstat(lock)):
                os.unlink(name, dir_fd=directory)

    # -- messages ------------------------------------------------------------------------------

    def _append(self, file: int, directory: int, group: list[MboxDelivery]) -> None:
        """Append the messages that are not given up, sync the file, and mark them as stored."""
        while group:
            size = os.fstat(file).st_size
            written = self._write(file, size, group)
            try:
                os.fsync(file)
                if not size:
                    os.fsync(directory)
            except BaseException:
                self._cut(file, size)
                raise
            group = []
            for index, (offset, delivery) in enumerate(written):
                if not delivery.decide(stored=True):
                    # It was given up while it was written: remove it, and write the rest again.
                    self._cut(file, offset)
                    group = [each for _, each in written[index + 1 :]]
                    break

    def _write(
        self, file: int, size: int, group: Sequence[MboxDelivery]
    ) -> list[tuple[int, MboxDelivery]]:
        """Append messages; return the written ones, each with its offset."""
        written = []
        separator = _separator(file, size)
        for delivery in group:
            if delivery.given_up:
                continue
            os.lseek(file, size, os.SEEK_SET)
            try:
                end = size + delivery.write(file, separator)
            except OSError as error:
                self._cut(file, size)
                delivery.fail(error)
                continue
            written.append((size, delivery))
            size, separator = end, b""
        return written

    def _cut(self, file: int, size: int) -> None:
        """Truncate the file to *size*."""
        try:
            os.ftruncate(file, size)
            os.fsync(file)
        except OSError as error:
            log.error(  # noqa: TRY400 - an error of the disk
                "cannot truncate %s to the %d bytes before an unacknowledged message: %s",
                *(self.path, size, error.strerror),
            )
            raise


def _separator(file: int, size: int) -> bytes:
    """Return the line ends that are missing before a new message; a killed program omits them."""
    end = os.pread(file, 2, max(0, size - 2))
    if not end or end == b"\n\n":
        return b""
    return b"\n" if end.endswith(b"\n") else b"\n\n"


def _create_lock(directory: int, name: str) -> int:
    """Create a file that contains our process ID.

    :raises FileExistsError: the file exists
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    lock = os.open(name, flags, FILE_MODE, dir_fd=directory)
    with suppress(OSError):  # if the disk is full, an empty lock file is a lock as well
        os.write(lock, b"%d\n" % os.getpid())
    return lock


def _is_stale(directory: int, name: str) -> bool:
    """Return whether a lock file is stale."""
    try:
        lock = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except FileNotFoundError:
        return False  # it was removed meanwhile; locking is tried again
    except OSError:
        there = os.stat(name, dir_fd=directory, follow_symlinks=False)
        return time.time() - there.st_mtime > STALE_SECONDS
    try:
        made = os.fstat(lock).st_mtime
        text = os.read(lock, 32).split(b"\n")[0].strip(b"\0 ")
    finally:
        os.close(lock)
    if time.time() - made > STALE_SECONDS:
        return True
    if not text.isdigit() or not 0 < int(text) < 1 << 31:
        return False
    number = int(text)
    # In a container the killed process may have had the same process ID.
    return made < _STARTED - 1 if number == os.getpid() else not _exists(number)


def _exists(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
