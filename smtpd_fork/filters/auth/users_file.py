"""UsersFile: a file of users and password hashes, in the format of Dovecot and htpasswd.

A line is ``USER:HASH``. The fields after another colon are those of Dovecot's passwd-file (uid,
home, ...), and are ignored. But a line with an extra field that restricts a user, or allows access
without a password, is an error. Lines with errors are reported and skipped; the other lines are
used.
"""

from __future__ import annotations

import logging
import secrets
import stat
from hashlib import blake2b
from typing import TYPE_CHECKING

from smtpd_fork.errors import HandlerError
from smtpd_fork.filters.auth.claimed_user import LONGEST_USER, user_key
from smtpd_fork.filters.auth.password_hash import PasswordHash
from smtpd_fork.filters.rule_file import RuleFile
from smtpd_fork.sanitizer import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Users", "UsersFile"]

log = logging.getLogger("smtpd_fork.auth")

EXTRA_FIELD = 7
"""The index of the extra fields of Dovecot's passwd-file, after the seven fields of passwd(5)."""

MOST_REPORTED = 20
"""Maximum errors of one file that are reported one by one; the others are only counted."""

_LOCKED = ("!", "*")
"""Prefixes of the hash of a locked user, who cannot authenticate (passwd(5))."""


class Users:
    """The users of a file.

    :ivar faults: warnings about the file, for the log
    """

    def __init__(self, hashes: Mapping[str, PasswordHash], faults: Sequence[str]) -> None:
        self._hashes = hashes
        self._any = list(hashes.values()) or [PasswordHash(_DUMMY_HASH)]
        self._key = secrets.token_bytes(16)
        self.faults = faults

    def __len__(self) -> int:
        return len(self._hashes)

    def verify(self, user: str, password: bytes) -> bool:
        """Return whether *password* is the password of *user*.

        For an unknown user the hash of another user is computed, so that the duration does not
        reveal which users exist. It is always the same hash for the same name.
        """
        key = user_key(user)
        found = self._hashes.get(key)
        if found is None:
            self._substitute_for(key).verify(password)
            return False
        return found.verify(password)

    def _substitute_for(self, key: str) -> PasswordHash:
        digest = blake2b(key.encode("utf-8", "surrogateescape"), key=self._key, digest_size=8)
        return self._any[int.from_bytes(digest.digest()) % len(self._any)]


_DUMMY_HASH = "$2b$10$ETDUocx0ueSpjUlVvjDLg.U3CbLA62wxGaCOlOp6oLvzHOsk5zoRi"
"""The hash that is computed if the file has no users."""


class UsersFile(RuleFile):
    """A file of users."""

    def read_users(self) -> Users:
        """Read the file. Blocks.

        :raises HandlerError: the file cannot be read, or all users of the system may write to it
        """
        hashes: dict[str, PasswordHash | None] = {}
        faults, wrong = self._mode_faults(), []
        for number, line in self.lines():
            text = line.strip(" \t\r")
            if not text or text.startswith("#"):
                continue
            try:
                _add(hashes, text)
            except ValueError as error:
                wrong.append(self.error(number, "", error))
        faults += [str(error) for error in wrong[:MOST_REPORTED]]
        if len(wrong) > MOST_REPORTED:
            faults.append(f"{self.name}: {len(wrong) - MOST_REPORTED} more lines have errors")
        valid = {user: each for user, each in hashes.items() if each is not None}
        if weak := sum(each.weak for each in valid.values()):
            faults.append(
                f"{self.name}: {weak} hashes use MD5 ($1$, $apr1$); their passwords are found "
                "quickly if the file leaks"
            )
        return Users(valid, faults)

    def _mode_faults(self) -> list[str]:
        try:
            mode = self.path.stat().st_mode
        except OSError:
            return []  # reading the file reports the error
        if mode & stat.S_IWOTH:
            raise HandlerError(f"{self.name}: all users of the system may write to it: chmod o-w")
        if mode & stat.S_IROTH:
            return [f"{self.name}: all users of the system may read it: chmod o-r"]
        return []


def _add(hashes: dict[str, PasswordHash | None], text: str) -> None:
    """Add the user of a line to *hashes*; the hash of a locked user is None.

    :raises ValueError: the line has an error; the text never contains a part of the hash
    """
    user, colon, rest = text.partition(":")
    if not colon:
        raise ValueError("expected USER:HASH")
    if not user or len(user) > LONGEST_USER or not user.isprintable() or user != user.strip():
        raise ValueError(f"{printable(user, 60)!r} is not a valid user name")
    key = user_key(user)
    if key in hashes:
        raise ValueError(f"user {user!r} is defined twice: the first line is used")
    fields = rest.split(":", EXTRA_FIELD - 1)
    extra = fields[EXTRA_FIELD - 1].split() if len(fields) == EXTRA_FIELD else []
    for field in extra:
        name = field.partition("=")[0]
        if not name.startswith("userdb_"):
            raise ValueError(f"user {user!r}: the field {printable(name, 60)} is unknown")
    is_locked = fields[0].startswith(_LOCKED) or fields[0] in {"", "x"}
    try:
        hashes[key] = None if is_locked else PasswordHash(fields[0])
    except ValueError as error:
        raise ValueError(f"user {user!r}: {error}") from None
