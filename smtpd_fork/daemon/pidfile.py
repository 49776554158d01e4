"""PidFile: says who serves, and keeps a second one from starting.

The lock (flock(2)) is what counts, not the number in the file: a stale file, or a pid that now
is somebody else's, never blocks a start. The lock belongs to the open file, so it passes through
fork(2) to the daemon, and goes when its last holder does, however that ends.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Self

from smtpd_fork.errors import CannotCreateError

__all__ = ["PidFile"]

MODE = 0o644

_LONGEST_PID = 32


class PidFile:
    """A pid-file that is open and locked. Make one with :meth:`acquire`.

    :ivar path: where it is, absolute
    :ivar descriptor: the open file
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self._is_anothers = False

    @classmethod
    def acquire(cls, path: str | os.PathLike[str]) -> Self:
        """Open and lock *path*, which need not exist.

        :raises CannotCreateError: it cannot be written, or a running process holds it
        """
        absolute = Path(path).absolute()
        while True:
            try:
                descriptor = os.open(
                    absolute, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, MODE
                )
            except OSError as error:
                raise CannotCreateError(
                    f"cannot write the pid-file {absolute}: {error.strerror}"
                ) from None
            pid_file = cls(absolute, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = pid_file._read()
                os.close(descriptor)
                reason = error.strerror
                if isinstance(error, BlockingIOError):
                    reason = f"a running process holds it{f' (pid {holder})' if holder else ''}"
                raise CannotCreateError(f"cannot lock the pid-file {absolute}: {reason}") from None
            # Between open and lock its last holder may have removed it: then this is nobody's.
            if pid_file.is_ours():
                return pid_file
            os.close(descriptor)

    @classmethod
    def inherit(cls, path: str | os.PathLike[str], descriptor: int) -> Self:
        """Return the file that another process opened and locked; it is that one's still."""
        pid_file = cls(Path(path), descriptor)
        pid_file._is_anothers = True
        return pid_file

    def let_go(self) -> None:
        """Leave the file, and its lock, to another process that has it open too."""
        self._is_anothers = True

    def take_over(self) -> None:
        """Have the file from a process that let go of it."""
        self._is_anothers = False

    def _read(self) -> str:
        text = os.pread(self.descriptor, _LONGEST_PID, 0).decode("ascii", "replace").strip()
        return text if text.isdigit() else ""

    def write(self, pid: int) -> None:
        """Write *pid* and a line's end, in place of whatever was there.

        :raises CannotCreateError: the disk is full, or worse
        """
        try:
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, b"%d\n" % pid, 0)
        except OSError as error:
            raise CannotCreateError(
                f"cannot write the pid-file {self.path}: {error.strerror}"
            ) from None

    def is_ours(self) -> bool:
        """Whether the path still leads to the file that is locked here."""
        try:
            there = self.path.lstat()
        except OSError:
            return False
        here = os.fstat(self.descriptor)
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def remove(self) -> None:
        """Remove the file if it is still ours, and let go of the lock.

        Without the right to remove it (privileges were dropped) it is emptied: the
        :class:`~smtpd_fork.daemon.janitor.Janitor` removes it.
        """
        if not self._is_anothers and self.is_ours():
            with suppress(OSError):
                os.ftruncate(self.descriptor, 0)
                self.path.unlink()
        self.close()

    def close(self) -> None:
        """Let go of the lock."""
        os.close(self.descriptor)
