"""Log targets: what a log is written to. A write takes a moment at most, also if nobody reads.

The handlers of :mod:`logging` have no time limit: ``StreamHandler`` waits for a full pipe, and
``SysLogHandler``, before Python 3.14, for a syslogd that hangs. ``WatchedFileHandler`` opens a file
of any owner (see :func:`smtpd_fork.safe_open.safe_open`). Libraries for journald have
to be compiled, or have no types, and have no time limit either.
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

MOMENT_SECONDS = 0.2
"""How long one write waits for the reader; then the caller decides."""

FILE_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_NONBLOCK
"""Of open(2); with O_NONBLOCK a FIFO without a reader is an error and does not block the start."""

FILE_MODE = 0o640
"""Of a new log file, less the umask: addresses of senders and recipients are nobody else's."""

_NEW_CONNECTION = {errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN, errno.EPIPE}
"""Errors of a socket whose other end was closed: syslogd was restarted."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
"""journald takes a file in memory only if nobody can change it any more."""


class LogTarget(ABC):
    """A target of log entries."""

    def write(self, entries: Sequence[bytes], late: Callable[[], bool]) -> int:
        """Write *entries* one by one: one that cannot be written does not stop the next.

        :param late: whether to give up
        :returns: how many were written
        """
        written = 0
        for entry in entries:
            if self._push(entry, late) == len(entry):
                written += 1
            elif late():
                break
        return written

    def _push(self, data: bytes, late: Callable[[], bool]) -> int:
        """Write *data*; return how many bytes were written."""
        rest = memoryview(data)
        with suppress(Exception):  # OSError mostly; the next write may succeed
            while rest:
                sent = self._send(rest)
                rest = rest[sent:]
                if not sent and late():
                    break
        return len(data) - len(rest)

    @abstractmethod
    def _send(self, data: memoryview) -> int:
        """Write what can be written of *data* in a moment; return how many bytes: perhaps 0.

        :raises OSError: it cannot be written, now or at all
        """

    def reopen(self) -> str | None:
        """Open the target by its name again; return a message for the log, if there is one.

        :raises OSError: it cannot be opened; the old one is kept
        """
        return None

    @abstractmethod
    def close(self) -> None:
        """Close the target."""


class StreamTarget(LogTarget):
    """A descriptor that other processes may share: a terminal, a pipe, a socket.

    :param descriptor: its flags are left alone: O_NONBLOCK would hold for all that share it
    """

    def __init__(self, descriptor: int) -> None:
        self._torn = False
        self._use(descriptor)

    def _use(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        # A pipe that is ready for writing takes so much without blocking (pipe(7)).
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._most = None if is_file else select.PIPE_BUF

    def write(self, entries: Sequence[bytes], late: Callable[[], bool]) -> int:
        """Write *entries* as one."""
        # After half an entry comes a line end, or the next would look like its second half.
        start = b"\n" if self._torn else b""
        written = self._push(start + b"".join(entries), late) - len(start)
        ends = list(accumulate(map(len, entries)))
        if written >= 0:
            self._torn = written not in {0, *ends}
        return bisect_right(ends, written)

    def _send(self, data: memoryview) -> int:
        if self._most is not None and not self._poll.poll(MOMENT_SECONDS * 1000):
            return 0
        try:
            return os.write(self._descriptor, data[: self._most])
        except BlockingIOError:  # another process has made it non-blocking
            return 0

    def close(self) -> None:
        """Do nothing: it belongs to others as well."""


class FileTarget(StreamTarget):
    """A file that is appended to; it may also be a FIFO with a reader, or a device.

    :param path: absolute, as the directory becomes / later
    :param owner: uid and gid of a new file: those of the user who will open it again
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
        """Open the path again: it may be another file by now (logrotate(8))."""
        new, old = self._open(), self._descriptor
        if os.path.sameopenfile(new, old):
            os.close(new)
            return None
        self._use(new)
        os.close(old)
        return f"log file reopened: {self.path}"

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            os.close(self._descriptor)


class _SocketTarget(LogTarget):
    """A unix socket of a log daemon, which may be restarted at any time.

    :raises OperatingSystemError: there is none
    """

    name: str

    def __init__(self, path: str) -> None:
        if not Path(path).is_socket():
            raise OperatingSystemError(f"cannot log to {self.name}: there is no {path}")
        self._path = path

    @staticmethod
    def _new(kind: socket.SocketKind) -> socket.socket:
        """Return a socket on which a send waits for a moment at most.

        ``settimeout`` polls, and a datagram socket is always ready, whatever its receiver is.
        """
        sock = socket.socket(socket.AF_UNIX, kind)
        wait = struct.pack("@ll", 0, int(MOMENT_SECONDS * 1_000_000))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
        return sock


class SyslogTarget(_SocketTarget):
    """The system's syslog: datagrams, or a stream where syslogd is an old one."""

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
            if error.errno not in _NEW_CONNECTION:
                raise
        self.close()
        return self._send_once(data)

    def _send_once(self, data: memoryview) -> int:
        sock = self._connected()
        try:
            if sock.type == socket.SOCK_DGRAM:
                return sock.send(data)
            sock.sendall(bytes(data) + b"\0")  # as syslog(3) frames on a stream
        except BlockingIOError:
            return 0
        return len(data)

    def reopen(self) -> str | None:
        """Connect again with the next entry."""
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
