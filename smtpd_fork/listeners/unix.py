"""Unix sockets: an existing socket is replaced only if no process answers there.

A lock covers the time from the check of the existing socket to listen(2), as two processes may
start at the same time: a socket that is bound and does not listen yet looks like that of a dead
process, and the other process would replace it.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from smtpd_fork.listeners.listener import closed_on_error
from smtpd_fork.safe_open import exclusively

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["bind_unix"]

PROBE_SECONDS = 1.0
"""Timeout for connecting to an existing socket; a local process answers immediately."""


def bind_unix(path: Path, mode: int, backlog: int | None) -> socket.socket:
    """Bind a unix socket (unix(7)) at *path* with file mode *mode*, and listen on it.

    :param backlog: for listen(2); None: do not listen
    :raises OSError: as bind(2); EADDRINUSE if a process answers there, EEXIST if the path is not
        a socket
    """
    with exclusively(path):
        _clear(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with closed_on_error([sock]):
            _bind(sock, path, mode)
            if backlog is not None:
                sock.listen(backlog)
    return sock


def _bind(sock: socket.socket, path: Path, mode: int) -> None:
    # bind(2) applies the umask to the mode of the path. With chmod(2) after it, the path would have
    # the wrong mode for a moment.
    old_umask = os.umask(0o777 & ~mode)
    try:
        sock.bind(str(path))
    finally:
        os.umask(old_umask)


def _clear(path: Path) -> None:
    """Remove the socket that a dead process left at *path*, if there is one."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            with suppress(FileNotFoundError):
                path.unlink()
            return
        except FileNotFoundError:
            return
        except PermissionError:
            raise
        except OSError:
            pass  # a full backlog or a timeout: a process has the socket
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
