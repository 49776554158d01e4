"""Log targets: files, streams, syslog and journald. Each write has a time limit.

The handlers of :mod:`logging` have no time limit: ``StreamHandler`` waits while a pipe is full, and
``SysLogHandler``, before Python 3.14, waits for a syslogd that hangs. ``WatchedFileHandler`` opens
files of any owner (see :func:`smtpd_fork.safe_open.safe_open`). Libraries for journald need a
compiler or have no type hints, and have no time limit either.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import stat
import struct
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path

from smtpd_fork.errors import CannotCreateError, OperatingSystemError
from smtpd_fork.safe_open import safe_open

__all__ = ["FILE_FLAGS", "FileTarget", "JournalTarget", "LogTarget", "StreamTarget", "SyslogTarget"]

WRITE_TIMEOUT_SECONDS = 0.2
"""Time limit of one write; then the caller decides whether to try again."""

FILE_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_NONBLOCK
"""Flags of open(2); with O_NONBLOCK a FIFO without a reader is an error, and does not block."""

FILE_MODE = 0o640
"""Mode of a new log file before the umask: other users must not see senders and recipients."""

_DISCONNECTED = {errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN, errno.EPIPE}
"""Errors of a socket that the other end has closed: syslogd was restarted."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
"""Seals of a file in memory: journald requires that it cannot be changed any more."""


class LogTarget(ABC):
    """A target of log entries."""

    def write(self, entries: Sequence[bytes], timed_out: Callable[[], bool]) -> int:
        """Write *entries* one by one; continue after an entry that cannot be written.

        :param timed_out: returns whether the time limit has passed
        :returns: number of entries that were written
        """
        written = 0
        for entry in entries:
            if self._write_all(entry, timed_out) == len(entry):
                written += 1
            elif timed_out():
                break
        return written

    def _write_all(self, data: bytes, timed_out: Callable[[], bool]) -> int:
        """Write *data*; return the number of bytes that were written."""
        rest = memoryview(data)
        with suppress(Exception):  # usually an OSError; the next write may succeed
            while rest:
                sent = self._send(rest)
                rest = rest[sent:]
                if not sent and timed_out():
                    break
        return len(data) - len(rest)

    @abstractmethod
    def _send(self, data: memoryview) -> int:
        """Write as much of *data* as possible within the time limit of one write.

        :returns: number of bytes that were written, perhaps 0
        :raises OSError: *data* cannot be written
        """

    def reopen(self) -> str | None:
        """Open the target again by its name; return a message for the log, or None.

        :raises OSError: it cannot be opened; the old target is kept
        """
        return None

    @abstractmethod
    def close(self) -> None:
        """Close the target."""


class StreamTarget(LogTarget):
    """A descriptor that other processes may share: a terminal, a pipe, a socket.

    :param descriptor: its flags are not changed, as O_NONBLOCK would affect the other processes
    """

    def __init__(self, descriptor: int) -> None:
        self._line_incomplete = False
        self._set_descriptor(descriptor)

    def _set_descriptor(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        # A pipe that is ready for writing accepts PIPE_BUF bytes without blocking (pipe(7)).
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._max_bytes = None if is_file else select.PIPE_BUF

    def write(self, entries: Sequence[bytes], timed_out: Callable[[], bool]) -> int:
        """Write all *entries* together."""
        # A line end after an incomplete entry, or the next entry would look like the rest of it.
        start = b"\n" if self._line_incomplete else b""
        written = self._write_all(start + b"".join(entries), timed_out) - len(start)
        ends = list(accumulate(map(len, entries)))
        if written >= 0:
            self._line_incomplete = written not in {0, *ends}
        return bisect_right(ends, written)

    def _send(self, data: memoryview) -> int:
        if self._max_bytes is not None and not self._poll.poll(WRITE_TIMEOUT_SECONDS * 1000):
            return 0
        try:
            return os.write(self._descriptor, data[: self._max_bytes])
        except BlockingIOError:  # another process has set O_NONBLOCK
            return 0

    def close(self) -> None:
        """Do nothing, as other processes may share the descriptor."""


class FileTarget(StreamTarget):
    """A file to which entries are appended; it may also be a FIFO with a reader, or a device.

    :param path: absolute path, as a detached daemon changes its directory
    :param owner: uid and gid for a new file: those of the user that will open it again
    :raises CannotCreateError: it cannot be opened
    """

    def __init__(self, path: Path, owner: tuple[int, int] | None = None) -> None:
        self.path = path
        self._owner = owner
        try:
            super().__init__(self._open())
        except OSError as error:
            raise CannotCreateError(f"cannot log to {path}: {error.strerror}") from None

    def _open(self) -> int:
        try:
            descriptor = safe_open(self.path, FILE_FLAGS | os.O_CREAT | os.O_EXCL, FILE_MODE)
        except FileExistsError:
            return safe_open(self.path, FILE_FLAGS | os.O_CREAT, FILE_MODE)
        if self._owner is not None and os.geteuid() == 0:
            os.fchown(descriptor, *self._owner)
        return descriptor

    def reopen(self) -> str | None:
        """Open the path again, as logrotate(8) may have replaced the file."""
        new, old = self._open(), self._descriptor
        if os.path.sameopenfile(new, old):
            os.close(new)
            return None
        self._set_descriptor(new)
        os.close(old)
        return f"log file reopened: {self.path}"

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            os.close(self._descriptor)


class _SocketTarget(LogTarget):
    """A unix socket of a log daemon, which may be restarted at any time.

    :raises OperatingSystemError: the socket does not exist
    """

    name: str

    def __init__(self, path: str) -> None:
        if not Path(path).is_socket():
            raise OperatingSystemError(f"cannot log to {self.name}: there is no {path}")
        self._path = path

    @staticmethod
    def _new(kind: socket.SocketKind) -> socket.socket:
        """Return a socket whose send(2) has a time limit.

        ``settimeout`` would not work: it uses poll(2), and a datagram socket is always reported as
        ready, also if its receiver does not read.
        """
        sock = socket.socket(socket.AF_UNIX, kind)
        wait = struct.pack("@ll", 0, int(WRITE_TIMEOUT_SECONDS * 1_000_000))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
        return sock


class SyslogTarget(_SocketTarget):
    """The syslog of the system, by datagrams, or by a stream for an old syslogd."""

    name = "syslog"
    _socket: socket.socket | None = None

    def _connected(self) -> socket.socket:
        if self._socket is None:
            try:
                self._socket = self._connect(socket.SOCK_DGRAM)
            except OSError as error:
                if error.errno != errno.EPROTOTYPE:
                    raise
                self._socket = self._connect(socket.SOCK_STREAM)
        return self._socket

    def _connect(self, kind: socket.SocketKind) -> socket.socket:
        sock = self._new(kind)
        try:
            sock.connect(self._path)
        except OSError:
            sock.close()
            raise
        return sock

    def _send(self, data: memoryview) -> int:
        try:
            return self._send_once(data)
        except OSError as error:
            if error.errno not in _DISCONNECTED:
                raise
        self.close()
        return self._send_once(data)

    def _send_once(self, data: memoryview) -> int:
        sock = self._connected()
        try:
            if sock.type == socket.SOCK_DGRAM:
                return sock.send(data)
            sock.sendall(bytes(data) + b"\0")  # the framing of syslog(3) on a stream
        except BlockingIOError:
            return 0
        return len(data)

    def reopen(self) -> str | None:
        """Close the connection; the next entry opens a new one."""
        self.close()
        return None

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class JournalTarget(_SocketTarget):
    """systemd-journald, by its Native Journal Protocol."""

    name = "journald"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._socket = self._new(socket.SOCK_DGRAM)

    def _send(self, data: memoryview) -> int:
        try:
            self._socket.sendto(data, self._path)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno not in {errno.EMSGSIZE, errno.ENOBUFS}:
                raise
            return self._send_large(data)
        return len(data)

    def _send_large(self, data: memoryview) -> int:
        """Send an entry that is too large for a datagram as a sealed memfd_create(2)."""
        descriptor = os.memfd_create("smtpd-fork-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.write(descriptor, data)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("@i", descriptor))
            self._socket.sendmsg([b""], [rights], 0, self._path)
        except BlockingIOError:
            return 0
        finally:
            os.close(descriptor)
        return len(data)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
