"""Dropping privileges for good, with proof that root is gone."""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from smtpd_fork.errors import NotPermittedError, UnknownUserError

__all__ = ["Account", "ask_as", "drop_privileges", "look_up_user", "unreadable_library"]


_LONGEST_ANSWER = 4096
"""Bytes; at most PIPE_BUF, so that it is written at once."""


@dataclass(frozen=True, slots=True)
class Account:
    """A user of the system, as passwd(5) has it."""

    name: str
    uid: int
    gid: int


def look_up_user(name: str, *, may_be_it: bool = False) -> Account:
    """Return the account of *name*, which is the name of a user, or a uid in digits.

    :param may_be_it: the process may be that user already, and need not be root then
    :raises UnknownUserError: there is no such user
    :raises NotPermittedError: the process is not root, or the user is root
    """
    try:
        entry = pwd.getpwuid(int(name)) if name.isascii() and name.isdigit() else pwd.getpwnam(name)
    except (KeyError, OverflowError, ValueError):
        raise UnknownUserError(f"unknown user {name!r}") from None
    if os.geteuid() != 0 and not (may_be_it and os.geteuid() == entry.pw_uid):
        raise NotPermittedError(f"cannot drop privileges to user {name!r}: only root can")
    if entry.pw_uid == 0:
        raise NotPermittedError(f"user {name!r} is root; name another user")
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def drop_privileges(account: Account) -> None:
    """Become *account* by initgroups(3), setgid(2) and setuid(2), and check that root is gone.

    :raises NotPermittedError: the system refused, or root is not gone
    """
    if os.getresuid() == (account.uid,) * 3 and not _root_comes_back():
        return  # the old process of an upgrade has done it
    try:
        # In this order: without root, groups can no longer be changed.
        os.initgroups(account.name, account.gid)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
    except OSError as error:
        raise NotPermittedError(
            f"cannot drop privileges to user {account.name!r}: {error.strerror}"
        ) from None
    if _root_comes_back() or os.getresuid() != (account.uid,) * 3:
        raise NotPermittedError(
            f"dropped privileges to user {account.name!r}, but can become root again"
        )


def ask_as(account: Account | None, question: Callable[[], str]) -> str:
    """Return what *question* returns in a child process that is *account*.

    For a process without threads. What the question raises is the answer as well, as a text.

    :param account: None: the user that this process is
    """
    if account is None:
        return question()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        answer = ""
        try:
            drop_privileges(account)
            answer = question()
        except BaseException as error:  # noqa: BLE001 - nothing of a child goes on here
            answer = str(error)
        finally:
            os.write(write, answer.encode("utf-8", "replace")[:_LONGEST_ANSWER])
            os._exit(0)
    os.close(write)
    with os.fdopen(read, encoding="utf-8", errors="replace") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


def unreadable_library() -> str:
    """Return the first file of the modules in use that this user cannot read; empty if none.

    Modules that are imported later could not be, and an upgrade could not start Python.
    """
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    for path in (sys.executable, *files):
        if path and not os.access(path, os.R_OK) and Path(path).is_absolute():
            return str(path)
    return ""


def _root_comes_back() -> bool:
    """Try all ways to become root again."""
    for attempt in (os.setuid, os.seteuid, os.setgid, os.setegid):
        try:
            attempt(0)
        except PermissionError:
            continue
        return True
    return False
