"""safe_open: opening files in directories where other users may write, and locks on paths.

For such directories the kernel has fs.protected_symlinks and fs.protected_regular (proc(5)); they
may be off in a container, and do not cover a link in its owner's directory. A file or link that
another user could have planted is not opened here.
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
"""Symbolic links in one path, as in the kernel (path_resolution(7))."""

LOCK_SECONDS = 5.0
"""Time for another process to release a path; it needs milliseconds, or a second for a probe."""

_RETRY_SECONDS = 0.01

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def safe_open(path: Path, flags: int, mode: int = 0o666, *, follow: bool = True) -> int:
    """Open *path* as open(2) does, unless another user may have planted it.

    Symbolic links have to belong to root or to this user; if that is not root, links of others are
    followed as well, except in world-writable directories. In a world-writable directory the file
    has to belong to this user or to the owner of the directory, and to have no other name.

    :param path: absolute
    :param follow: whether *path* itself may be a link
    :raises OSError: as open(2); EACCES with the reason if the path is not trusted
    """
    directory, name = _walk(path, follow=follow)
    try:
        if not (follow and _is_the_kernels(directory, name)):
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
    """Lock *path* among the processes that call this.

    The lock is on a file beside it, which is removed afterwards, and which no other user can open:
    any user who can read a file can lock it.

    :raises OSError: the file cannot be created; EADDRINUSE if another process has it for too long
    """
    lock = path.with_name(f".{path.name}.lock")
    descriptor = _locked(lock)
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()  # before close: a process that waits for the lock sees that it is gone
        os.close(descriptor)


def user_name() -> str:
    """Return the name of the user that this process is, or the number of one without a name."""
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
        time.sleep(_RETRY_SECONDS)  # flock(2) has no time limit; this happens at a start only


def _walk(path: Path, *, follow: bool) -> tuple[int, str]:
    """Return the directory of the file that *path* leads to, open, and the file's name in it."""
    parts = deque(path.parts[1:])
    links = 0
    directory = os.open("/", _DIRECTORY)
    try:
        while True:
            name = parts.popleft() if parts else "."
            if not parts and (not follow or _is_the_kernels(directory, name)):
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


def _is_the_kernels(directory: int, name: str) -> bool:
    """Whether it is a link like /proc/self/fd/2, which leads to a file and not to its text."""
    with suppress(OSError):
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        return stat.S_ISLNK(found.st_mode) and found.st_dev == Path("/proc/self").lstat().st_dev
    return False


def _link(directory: int, name: str, links: int) -> str | None:
    """Return the target of a symbolic link; None if it is not a link, or does not exist.

    :param links: number of links in the path so far
    :raises PermissionError: another user may have planted it
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
