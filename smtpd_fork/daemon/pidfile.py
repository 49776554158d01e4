"""PidFile: the file with the process id, which is locked while the daemon runs.

The lock shows that the daemon runs, and not the number in the file: a stale file, or the id of
another process, does not prevent a start. It is a write lock of the open file description
(fcntl(2), F_OFD_SETLK): the daemon inherits it by fork(2), and it lasts until the last descriptor
is closed.
Only a process that may write the file can have a write lock. Any reader can have a read lock, so a
file with only a read lock is stale as well, and is replaced.

A file that another user has created or may write is refused, as an administrator sends signals to
the process id in it. Libraries for pid-files trust the number, or the directory.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from smtpd_fork.errors import CannotCreateError
from smtpd_fork.safe_open import exclusively, safe_open

__all__ = ["PidFile"]

MODE = 0o644

_MAX_PID_BYTES = 32

MAX_BYTES = 64
"""Maximum bytes of a pid-file; a larger file is probably a key, a log or a configuration file that
was named by mistake."""

_FLOCK = "hhqqi4x"
"""struct flock of fcntl(2): type, whence, start, length, pid; a length of 0 is the whole file."""

_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


class PidFile:
    """An open and locked pid-file. Use :meth:`acquire` to create one.

    :ivar path: absolute path of the file
    :ivar descriptor: the open file
    :ivar foreign: whether another process owns it: the old or the new process of an upgrade
    """

    def __init__(self, path: Path, descriptor: int, *, foreign: bool = False) -> None:
        self.path = path
        self.descriptor = descriptor
        self.foreign = foreign

    @classmethod
    def acquire(cls, path: str | os.PathLike[str]) -> Self:
        """Open or create *path*, and lock it.

        :raises CannotCreateError: it cannot be written, or a running process has the lock
        """
        absolute = Path(path).absolute()
        with ExitStack() as stack, _write_errors(absolute):
            _lock_out_others(stack, absolute)
            return cls._acquire(absolute)

    @classmethod
    def holder(cls, path: str | os.PathLike[str]) -> int | None:
        """Return the process id in *path* if a running process has locked the file, else None."""
        with suppress(OSError, CannotCreateError):
            absolute = Path(path).absolute()
            pid_file = cls(absolute, safe_open(absolute, os.O_RDONLY | os.O_NONBLOCK))
            try:
                pid_file._check_not_locked()
            except CannotCreateError:
                return int(pid_file._read() or 0) or None
            finally:
                pid_file.close()
        return None

    @classmethod
    def _acquire(cls, path: Path) -> Self:
        while True:
            descriptor, made = _open(path)
            pid_file = cls(path, descriptor)
            try:
                pid_file._check()
                if pid_file._lock() and pid_file.is_ours():
                    if made:
                        os.fchmod(descriptor, MODE & ~_umask())
                    return pid_file
                pid_file._check_not_locked()
                # It was removed meanwhile, or has only read locks.
                if pid_file.is_ours():
                    path.unlink()
            except BaseException:
                pid_file.close()
                raise
            pid_file.close()

    def _check(self) -> None:
        """Check that no other user has created the file or may write to it.

        :raises PermissionError: the file must not be trusted
        """
        if reason := _reason_to_refuse(os.fstat(self.descriptor)):
            raise PermissionError(errno.EACCES, reason)

    def _lock(self) -> bool:
        """Take the write lock; return False if another process has a lock."""
        wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_OFD_SETLK, wanted)
        except BlockingIOError:
            return False
        return True

    def _check_not_locked(self) -> None:
        """Check that no process has the write lock, by testing whether a read lock is possible.

        :raises CannotCreateError: a process has the write lock
        """
        wanted = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        found = fcntl.fcntl(self.descriptor, fcntl.F_OFD_GETLK, wanted)
        if struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK:
            holder = self._read()
            reason = "a running process has locked it" + (f" (pid {holder})" if holder else "")
            raise CannotCreateError(f"cannot lock the pid file {self.path}: {reason}")

    def _read(self) -> str:
        text = os.pread(self.descriptor, _MAX_PID_BYTES, 0).decode("ascii", "replace").strip()
        return text if text.isdigit() else ""

    def write(self, pid: int) -> None:
        """Replace the content by *pid* and a line end.

        :raises CannotCreateError: the disk is full, or fails
        """
        with _write_errors(self.path):
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, b"%d\n" % pid, 0)

    def is_ours(self) -> bool:
        """Whether the path still refers to this file."""
        try:
            return os.path.samestat(self.path.lstat(), os.fstat(self.descriptor))
        except OSError:
            return False

    def remove(self) -> None:
        """Remove the file if this process still owns it, and release the lock.

        If the process may no longer remove it, because privileges were dropped, the file is
        truncated, and :class:`smtpd_fork.daemon.cleanup_process.CleanupProcess` removes it.
        """
        if not self.foreign and self.is_ours():
            with suppress(OSError):
                os.ftruncate(self.descriptor, 0)
                self.path.unlink()
        self.close()

    def close(self) -> None:
        """Close the file, and release the lock."""
        os.close(self.descriptor)


def _open(path: Path) -> tuple[int, bool]:
    """Open or create the file; return its descriptor, and whether it was created."""
    while True:
        with suppress(FileExistsError):
            # Mode 0600 until it is locked, so that no other user can lock it before.
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
            return safe_open(path, flags, 0o600, follow=False), True
        with suppress(FileNotFoundError):  # it was removed meanwhile
            return safe_open(path, os.O_RDWR | os.O_NONBLOCK, follow=False), False


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"cannot write pid file {path}: {_reason(path, error)}"
        raise CannotCreateError(reason) from None


def _reason(path: Path, error: OSError) -> str:
    """Return why *path* cannot be written; if its directory does not exist, name the directory."""
    if isinstance(error, FileNotFoundError) and not path.parent.exists():
        return f"directory {path.parent} does not exist"
    return error.strerror or str(error)


def _reason_to_refuse(found: os.stat_result) -> str:
    """Return why a file must not be trusted; empty if it can be."""
    if not stat.S_ISREG(found.st_mode):
        return "it is not a file"
    if found.st_uid not in {0, os.geteuid()}:
        return f"it belongs to another user (uid {found.st_uid}); remove it"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"other users may write to it (mode {stat.S_IMODE(found.st_mode):o}); remove it"
    if found.st_size > MAX_BYTES:
        return f"it has {found.st_size} bytes, so it is not a pid file"
    return "it has several hard links" if found.st_nlink > 1 else ""


def _umask() -> int:
    old = os.umask(0o077)
    os.umask(old)
    return old


def _lock_out_others(stack: ExitStack, path: Path) -> None:
    """Lock *path* against other processes of smtpd-fork, if its directory is writable.

    If the directory is not writable, no process of this user can replace the file anyway.
    """
    try:
        stack.enter_context(exclusively(path))
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
