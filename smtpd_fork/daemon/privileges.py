"""Dropping privileges for good, with proof that root is gone."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass

from smtpd_fork.errors import NotPermittedError, UnknownUserError

__all__ = ["Account", "drop_privileges", "look_up_user"]


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
        raise NotPermittedError(f"cannot become user {name!r}: only root can")
    if entry.pw_uid == 0:
        raise NotPermittedError(f"user {name!r} is root, which is no user to drop privileges to")
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
        raise NotPermittedError(f"cannot become user {account.name!r}: {error.strerror}") from None
    if _root_comes_back() or os.getresuid() != (account.uid,) * 3:
        raise NotPermittedError(f"became user {account.name!r}, but root is not gone")


def _root_comes_back() -> bool:
    """Try all ways to become root again."""
    for attempt in (os.setuid, os.seteuid, os.setgid, os.setegid):
        try:
            attempt(0)
        except PermissionError:
            continue
        return True
    return False
