"""Outlets: the places that a log is written to. None waits longer than a moment at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from smtpd_fork.errors import CannotCreateError, OperatingSystemError
from smtpd_fork.paths import open_trusted

__all__ = ["FILE_FLAGS", "FileTarget", "JournalTarget", "LogTarget", "StreamTarget", "SyslogTarget"]

MOMENT_SECONDS = 0.2
"""How long one attempt to write waits for its reader; then whoever writes decides."""

FILE_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_NONBLOCK
"""Of open(2); O_NONBLOCK, as a FIFO that nobody reads is an error, and no start that hangs."""

FILE_MODE = 0o666
"""Of a new log file, less the umask: as the shell's ``>>`` makes it."""

_NEW_CONNECTION = {errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN, errno.EPIPE}
"""What a socket says whose other end was closed: the syslogd was started anew."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
"""journald takes a file in memory only if nobody can change it any more."""


class LogTarget(Protocol):
    """A place for entries.

    :ivar joins: whether several entries may be written as one
    """

    joins: bool

    def send(self, data: memoryview) -> int:
        """Write what can be written of *data* in a moment; return how many bytes: perhaps 0.

        :raises OSError: it cannot be written, now or at all
        """

    def reopen(self) -> str | None:
        """Take the place by its name again; return what is to be told of that, if anything is.

        :raises OSError: it cannot be had; the old one is kept
        """

    def close(self) -> None:
        """Let go of it."""


class StreamTarget:
    """A descriptor that others may share: a terminal, a pipe, a socket.

    :param descriptor: is left as it is: O_NONBLOCK would be everybody's who has it
    """

    joins = True

    def __init__(self, descriptor: int) -> None:
        self._use(descriptor)

    def _use(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        # A pipe that is ready for writing takes so much without blocking (pipe(7)).
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._most = None if is_file else select.PIPE_BUF

    def send(self, data: memoryview) -> int:
        """Write once the reader has room."""
        if self._most is not None and not self._poll.poll(MOMENT_SECONDS * 1000):
            return 0
        try:
            return os.write(self._descriptor, data[: self._most])
        except BlockingIOError:  # who shares it has made it so
            return 0

    def reopen(self) -> str | None:
        """Do nothing: it has no name."""
        return None

    def close(self) -> None:
        """Do nothing: it was lent."""


class FileTarget(StreamTarget):
    """A file, appended to; it may also be a FIFO that somebody reads, or a device.

    :param path: absolute, as the daemon's folder becomes / later
    :raises CannotCreateError: it cannot be opened
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            super().__init__(self._open())
        except OSError as error:
            raise CannotCreateError(f"cannot log to {path}: {error.strerror}") from None

    def _open(self) -> int:
        return open_trusted(self.path, FILE_FLAGS | os.O_CREAT, FILE_MODE)

    def reopen(self) -> str | None:
        """Open the path again: what is there may be another file by now (logrotate(8))."""
        new, old = self._open(), self._descriptor
        if os.path.sameopenfile(new, old):
            os.close(new)
            return None
        self._use(new)
        os.close(old)
        return f"the log goes on here: {self.path} was opened again"

    def close(self) -> None:
        """Close it."""
        with suppress(OSError):
            os.close(self._descriptor)


def _bounded(sock: socket.socket) -> None:
    """Have a send on *sock* wait no longer than a moment.

    Not ``settimeout``: that polls, and a datagram socket is always ready, whatever its receiver is.
    """
    seconds = int(MOMENT_SECONDS)
    wait = struct.pack("@ll", seconds, int((MOMENT_SECONDS - seconds) * 1_000_000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)


class SyslogTarget:
    """The system's syslog, on its socket. It may be started anew at any time.

    The standard library's SysLogHandler has no limit of time, and formats what it sends.

    :param path: of the socket
    :raises OperatingSystemError: there is none
    """

    joins = False

    def __init__(self, path: str) -> None:
        if not Path(path).is_socket():
            raise OperatingSystemError(f"cannot log to syslog: there is no {path}")
        self._path = path
        self._socket: socket.socket | None = None

    def _connected(self) -> socket.socket:
        if self._socket is None:
            self._socket = self._connect()
        return self._socket

    def _connect(self) -> socket.socket:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):  # the other is an old syslogd's
            sock = socket.socket(socket.AF_UNIX, kind)
            try:
                _bounded(sock)
                sock.connect(self._path)
            except OSError as error:
                sock.close()
                if error.errno != errno.EPROTOTYPE:
                    raise
            else:
                return sock
        raise OSError(errno.EPROTOTYPE, os.strerror(errno.EPROTOTYPE))

    def send(self, data: memoryview) -> int:
        """Send one datagram; over a new connection, if the old one has lost its syslogd."""
        try:
            return self._send(data)
        except OSError as error:
            if error.errno not in _NEW_CONNECTION:
                raise
        self.close()
        return self._send(data)

    def _send(self, data: memoryview) -> int:
        sock = self._connected()
        try:
            if sock.type == socket.SOCK_DGRAM:
                return sock.send(data)
            sock.sendall(bytes(data) + b"\0")  # as syslog(3) frames on a stream
        except BlockingIOError:
            return 0
        return len(data)

    def reopen(self) -> str | None:
        """Connect anew with the next entry."""
        self.close()
        return None

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class JournalTarget:
    """systemd-journald, on the socket of its Native Journal Protocol.

    Our own, as the libraries for it either have to be compiled, or have no types that a checker
    takes; and neither has a limit of time.

    :param path: of the socket
    :raises OperatingSystemError: there is none
    """

    joins = False

    def __init__(self, path: str) -> None:
        if not Path(path).is_socket():
            raise OperatingSystemError(f"cannot log to journald: there is no {path}")
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        _bounded(self._socket)

    def send(self, data: memoryview) -> int:
        """Send one entry, to whoever has the path by now; a large one as a file in memory."""
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
        """Send an entry that is too large for a datagram: a sealed memfd_create(2), as it wants."""
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

    def reopen(self) -> str | None:
        """Do nothing: the path is looked up for each entry."""
        return None

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
