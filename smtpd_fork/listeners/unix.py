"""Unix sockets: a path that is replaced only if nobody answers there."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["bind_unix"]

PROBE_SECONDS = 1.0
"""How long a probe of an existing socket may take; a local one answers at once."""


def bind_unix(path: Path, mode: int) -> socket.socket:
    """Bind a unix socket (unix(7)) at *path* with file mode *mode*.

    :raises OSError: as bind(2); EADDRINUSE if somebody answers there, EEXIST if the path is not
        a socket
    """
    _clear(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # bind(2) makes the path with what the umask leaves; a chmod after it would come too late.
    old_umask = os.umask(0o777 & ~mode)
    try:
        sock.bind(str(path))
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(old_umask)
    return sock


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
            pass  # a full backlog, a time-out: somebody is there
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
