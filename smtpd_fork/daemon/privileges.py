"""Dropping privileges permanently, with a check that the process cannot become root again."""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from smtpd_fork.errors import NotPermittedError, UnknownUserError

__all__ = ["Account", "drop_privileges", "look_up_user", "run_as", "unreadable_library"]


_MAX_RESULT_BYTES = 4096
"""Maximum size of a result; at most PIPE_BUF, so that write(2) is atomic."""


@dataclass(frozen=True, slots=True)
class Account:
    """A user of the system, from passwd(5)."""

    name: str
    uid: int
    gid: int


def look_up_user(name: str, *, allow_current: bool = False) -> Account:
    """Return the account with the name or numeric uid *name*.

    :param allow_current: accept a process that already runs as this user, without being root
    :raises UnknownUserError: the user does not exist
    :raises NotPermittedError: the process is not root, or the user is root
    """
    try:
        entry = pwd.getpwuid(int(name)) if name.isascii() and name.isdigit() else pwd.getpwnam(name)
    except (KeyError, OverflowError, ValueError):
        raise UnknownUserError(f"unknown user {name!r}") from None
    if os.geteuid() != 0 and not (allow_current and os.geteuid() == entry.pw_uid):
        raise NotPermittedError(f"cannot drop privileges to user {name!r}: only root can")
    if entry.pw_uid == 0:
        raise NotPermittedError(f"user {name!r} is root; name another user")
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def drop_privileges(account: Account) -> None:
    """Change to *account* by initgroups(3), setresgid(2) and setresuid(2), and check the result.

    :raises NotPermittedError: a call failed, or the process can become root again
    """
    if os.getresuid() == (account.uid,) * 3 and not _can_become_root():
        return  # inherited from the old process of an upgrade
    try:
        # The user last: only root can change the groups.
        os.initgroups(account.name, account.gid)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
    except OSError as error:
        raise NotPermittedError(
            f"cannot drop privileges to user {account.name!r}: {error.strerror}"
        ) from None
    if _can_become_root() or os.getresuid() != (account.uid,) * 3:
        raise NotPermittedError(
            f"dropped privileges to user {account.name!r}, but can become root again"
        )


def run_as(account: Account | None, function: Callable[[], str]) -> str:
    """Call *function* in a child process that runs as *account*, and return its result.

    An exception of the function becomes the result, as text. This process must not have threads.

    :param account: None: the current user, without a child process
    """
    if account is None:
        return function()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        result = ""
        try:
            drop_privileges(account)
            result = function()
        except BaseException as error:  # noqa: BLE001 - the child must not continue here
            result = str(error)
        finally:
            os.write(write, result.encode("utf-8", "replace")[:_MAX_RESULT_BYTES])
            os._exit(0)
    os.close(write)
    with os.fdopen(read, encoding="utf-8", errors="replace") as pipe:
        result = pipe.read()
    os.waitpid(child, 0)
    return result


def unreadable_library() -> str:
    """Return the first file of Python or an imported module that this user cannot read, or "".

    If there is one, later imports would fail as well, and an upgrade could not start Python.
    """
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    for path in (sys.executable, *files):
        if path and not os.access(path, os.R_OK) and Path(path).is_absolute():
            return str(path)
    return ""


def _can_become_root() -> bool:
    """Try all system calls that could make the process root again; return whether one succeeds."""
    for attempt in (os.setuid, os.seteuid, os.setgid, os.setegid):
        try:
            attempt(0)
        except PermissionError:
            continue
        return True
    return False
