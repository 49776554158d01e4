"""Unix sockets: a path is replaced only if no process answers there.

Two processes may start at once. From the probe to listen(2) only one of them is at the path: a
socket that is bound and does not listen yet looks as a dead one does, and the other would replace
it.
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
"""How long a probe of an existing socket may take; a local one answers at once."""


def bind_unix(path: Path, mode: int, backlog: int | None) -> socket.socket:
    """Bind a unix socket (unix(7)) at *path* with file mode *mode*, and listen on it.

    :param backlog: of listen(2); None: do not listen
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
    # bind(2) makes the path with what the umask leaves; a chmod after it would come too late.
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
            pass  # a full backlog, a time-out: a process is there
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
