"""MboxFile: an mbox file that is locked, and messages appended to it, each whole or not at all.

Both locks of Debian's policy are taken: fcntl(2) on the file, and a file ``NAME.lock`` beside it.
Neither is waited for while the other is held, so no order of them can lead to a deadlock. A lock
file is left behind by a program that was killed; it is removed if the process whose number is in it
does not exist, or if it is :data:`STALE_SECONDS` old.
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
"""Age of a lock file that nobody removes any more, as other programs have it (liblockfile)."""

RETRY_SECONDS = 0.05
"""First wait for a lock; it doubles up to the next."""

LONGEST_RETRY_SECONDS = 0.5

NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}
"""Of link(2), on FAT, exFAT, and some network file systems and those of FUSE."""

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_STARTED = time.time()
"""A lock file of this process is younger."""


class LockedError(OSError):
    """Another program has locked the mailbox for too long."""


class MboxFile:
    """An mbox file. A symbolic link, or a file with several names, is an error.

    :param root: a directory, which has to be there
    :param names: the components of the path below it; directories that are missing are made
    """

    def __init__(self, root: str, names: tuple[str, ...]) -> None:
        self._root, self._directories, self._name = root, names[:-1], names[-1]
        self.path = "/".join((root.rstrip("/"), *names))

    def append(self, group: Sequence[MboxDelivery], seconds: float) -> None:
        """Append messages; on return each is stored, or was given up, or has failed.

        :param seconds: to wait for the locks
        :raises LockedError: they cannot be had in time
        :raises OSError: nothing of any message that was not stored is in the file
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
            time.sleep(wait)  # neither lock tells when it is free; this is a thread of the writer
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
        """Return the mailbox and its lock file, open; None if another program has them."""
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
            pass  # a mail reader has removed it meanwhile
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        return None

    def _check(self, found: os.stat_result) -> None:
        """See that it is a file of its own: a link would lead to another mailbox.

        :raises PermissionError: it is not
        """
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise PermissionError(errno.EPERM, f"{self.path} is no file, or has several names")

    @staticmethod
    def _lock_file(file: int) -> bool:
        try:
            if hasattr(fcntl, "F_OFD_SETLK"):
                # Of the open file: it stays when another thread closes the same mailbox (fcntl(2)).
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
                # The mailbox is locked by fcntl(2): of two programs only one removes a stale lock.
                if not _is_stale(directory, name):
                    return None
                log.warning("removed the stale lock %s.lock", self.path)
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)
        return None

    @staticmethod
    def _link_lock(directory: int, name: str) -> int:
        """Create the lock file with our number in it at once.

        A daemon that is killed between two steps would leave an empty one, of which nobody knows
        whether it is stale. Without hard links there is no other way.

        :raises FileExistsError: it is there
        """
        draft = f"{name}.new"  # ours alone: the mailbox is locked by fcntl(2)
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
            if os.path.samestat(there, os.fstat(lock)):  # not another's, who took ours for stale
                os.unlink(name, dir_fd=directory)

    # -- messages ------------------------------------------------------------------------------

    def _append(self, file: int, directory: int, group: list[MboxDelivery]) -> None:
        """Append the messages that are not given up; then have them on the disk, and decide."""
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
                    # Given up while it was written: it is taken out, and the others move up.
                    self._cut(file, offset)
                    group = [each for _, each in written[index + 1 :]]
                    break

    def _write(
        self, file: int, size: int, group: Sequence[MboxDelivery]
    ) -> list[tuple[int, MboxDelivery]]:
        """Append messages; return those that are in the file, and where they begin."""
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
        """Remove all from *size* on."""
        try:
            os.ftruncate(file, size)
            os.fsync(file)
        except OSError as error:
            log.error(  # noqa: TRY400 - the disk, not us
                "cannot cut %s to the %d bytes before an unacknowledged message: %s",
                *(self.path, size, error.strerror),
            )
            raise


def _separator(file: int, size: int) -> bytes:
    """Return what makes the end of the file an empty line: a killed program may have left none."""
    end = os.pread(file, 2, max(0, size - 2))
    if not end or end == b"\n\n":
        return b""
    return b"\n" if end.endswith(b"\n") else b"\n\n"


def _create_lock(directory: int, name: str) -> int:
    """Create a file with our number in it.

    :raises FileExistsError: it is there
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    lock = os.open(name, flags, FILE_MODE, dir_fd=directory)
    with suppress(OSError):  # a full disk: the lock holds all the same
        os.write(lock, b"%d\n" % os.getpid())
    return lock


def _is_stale(directory: int, name: str) -> bool:
    """Whether nobody will remove a lock file."""
    try:
        lock = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except FileNotFoundError:
        return False  # it is free, and tried again
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
    # In a container the process that was killed had the same number.
    return made < _STARTED - 1 if number == os.getpid() else not _exists(number)


def _exists(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
