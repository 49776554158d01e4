"""safe_open: opens files in directories that other users can write to, and locks paths.

The kernel protects such directories with fs.protected_symlinks and fs.protected_regular (proc(5)).
But containers may disable these, and they do not cover a link in a directory of the link's owner.
The functions of this module open no file or link that another user may have created.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import stat
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["exclusively", "safe_open", "user_name"]

MAX_LINKS = 40
"""Maximum of symbolic links in one path, as in the kernel (path_resolution(7))."""

LOCK_SECONDS = 5.0
"""Seconds to wait for a lock. Processes hold it for milliseconds, or a second with a probe."""

_RETRY_SECONDS = 0.01

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def safe_open(path: Path, flags: int, mode: int = 0o666, *, follow: bool = True) -> int:
    """Open *path* as open(2) does, unless another user may have created it.

    Symbolic links must belong to root or to this user. If this user is not root, links of other
    users are followed as well, except in world-writable directories. In a world-writable directory,
    the file must belong to this user or to the owner of the directory, and have one hard link.

    :param path: an absolute path
    :param follow: whether *path* itself may be a symbolic link
    :raises OSError: as open(2); EACCES with the reason if the path is not trusted
    """
    directory, name = _walk(path, follow=follow)
    try:
        if not (follow and _is_proc_link(directory, name)):
            flags |= os.O_NOFOLLOW
        descriptor = os.open(name, flags | os.O_CLOEXEC, mode, dir_fd=directory)
        try:
            _check_file(os.fstat(descriptor), os.fstat(directory))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor
    finally:
        os.close(directory)


@contextmanager
def exclusively(path: Path) -> Iterator[None]:
    """Lock *path* against other processes that call this function.

    The lock is on a second file in the same directory, which is removed afterwards. Other users
    cannot open it, as any user who can read a file can lock it.

    :raises OSError: the file cannot be created; EADDRINUSE if another process holds the lock for
        more than :data:`LOCK_SECONDS`
    """
    lock = path.with_name(f".{path.name}.lock")
    descriptor = _locked(lock)
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()  # before close: a process that waits for the lock notices the removal
        os.close(descriptor)


def user_name() -> str:
    """Return the name of the effective user, or the user id if it has no name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _locked(lock: Path) -> int:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        descriptor = safe_open(lock, os.O_RDWR | os.O_CREAT, 0o600, follow=False)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), lock.lstat()):
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if time.monotonic() >= deadline:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        time.sleep(_RETRY_SECONDS)  # flock(2) has no timeout; only a starting process gets here


def _walk(path: Path, *, follow: bool) -> tuple[int, str]:
    """Resolve *path*; return an open descriptor of the last directory, and the name in it."""
    parts = deque(path.parts[1:])
    links = 0
    directory = os.open("/", _DIRECTORY)
    try:
        while True:
            name = parts.popleft() if parts else "."
            if not parts and (not follow or _is_proc_link(directory, name)):
                return directory, name
            target = _link(directory, name, links)
            if target is not None:
                links += 1
                parts.extendleft(reversed(Path(target).parts))
                if not target.startswith("/"):
                    continue
                name = parts.popleft()  # the root
            elif not parts:
                return directory, name
            below = os.open(name, _DIRECTORY, dir_fd=directory)
            os.close(directory)
            directory = below
    except BaseException:
        os.close(directory)
        raise


def _is_proc_link(directory: int, name: str) -> bool:
    """Return whether *name* is a link of /proc, such as /proc/self/fd/2.

    The kernel resolves such a link to an open file, not by the text of the link.
    """
    with suppress(OSError):
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        return stat.S_ISLNK(found.st_mode) and found.st_dev == Path("/proc/self").lstat().st_dev
    return False


def _link(directory: int, name: str, links: int) -> str | None:
    """Return the target of a symbolic link; None if it is not a link, or does not exist.

    :param links: number of links in the path so far
    :raises PermissionError: another user may have created it
    """
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISLNK(found.st_mode):
        return None
    user = os.geteuid()
    if found.st_uid not in {0, user} and (user == 0 or _is_world_writable(os.fstat(directory))):
        raise PermissionError(errno.EACCES, f"{name} is a link of another user")
    if links >= MAX_LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return os.readlink(name, dir_fd=directory)


def _check_file(found: os.stat_result, directory: os.stat_result) -> None:
    if not _is_world_writable(directory):
        return
    if found.st_uid not in {os.geteuid(), directory.st_uid}:
        raise PermissionError(errno.EACCES, "it belongs to another user")
    if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
        raise PermissionError(errno.EACCES, "it has several hard links")


def _is_world_writable(directory: os.stat_result) -> bool:
    return bool(directory.st_mode & stat.S_IWOTH)
