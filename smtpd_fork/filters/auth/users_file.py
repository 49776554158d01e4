"""UsersFile: users and the hashes of their passwords, as Dovecot and htpasswd write them.

A line is ``USER:HASH``. What follows behind another colon is of Dovecot's passwd-file (uid, home,
...) and is skipped, but for fields that restrict a user or let him in without a password: such a
line is no user here. A line that is wrong is reported, and the others hold.
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
"""Where Dovecot's passwd-file has fields of its own, behind those of passwd(5)."""

MOST_REPORTED = 20
"""Lines that are wrong, of one file; the others are counted."""

_LOCKED = ("!", "*")
"""In front of the hash of a user who cannot authenticate, or in place of it (passwd(5))."""


class Users:
    """The users of a file, as it was read.

    :ivar faults: what is wrong with it, a line each
    """

    def __init__(self, hashes: Mapping[str, PasswordHash], faults: Sequence[str]) -> None:
        self._hashes = hashes
        self._any = list(hashes.values()) or [PasswordHash(_FOR_NOBODY)]
        self._key = secrets.token_bytes(16)
        self.faults = faults

    def __len__(self) -> int:
        return len(self._hashes)

    def verify(self, user: str, password: bytes) -> bool:
        """Whether it is the user's password.

        Of a user who is not there another one's hash takes the time: always the same one's, so
        that asking twice does not tell.
        """
        key = user_key(user)
        found = self._hashes.get(key)
        if found is None:
            self._instead_of(key).verify(password)
            return False
        return found.verify(password)

    def _instead_of(self, key: str) -> PasswordHash:
        digest = blake2b(key.encode("utf-8", "surrogateescape"), key=self._key, digest_size=8)
        return self._any[int.from_bytes(digest.digest()) % len(self._any)]


_FOR_NOBODY = "$2b$10$ETDUocx0ueSpjUlVvjDLg.U3CbLA62wxGaCOlOp6oLvzHOsk5zoRi"
"""Takes the time of a look-up in a file without users."""


class UsersFile(RuleFile):
    """A file of users."""

    def read_users(self) -> Users:
        """Read it. Blocks.

        :raises HandlerError: it cannot be read, or any user of the system may write to it
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
            faults.append(f"{self.name}: {len(wrong) - MOST_REPORTED} more lines are wrong")
        valid = {user: each for user, each in hashes.items() if each is not None}
        if weak := sum(each.weak for each in valid.values()):
            faults.append(
                f"{self.name}: {weak} hashes are of MD5 ($1$, $apr1$), which is broken quickly by "
                "one who has the file"
            )
        return Users(valid, faults)

    def _mode_faults(self) -> list[str]:
        try:
            mode = self.path.stat().st_mode
        except OSError:
            return []  # reading it says why
        if mode & stat.S_IWOTH:
            raise HandlerError(f"{self.name}: any user of the system may write to it: chmod o-w")
        if mode & stat.S_IROTH:
            return [f"{self.name}: any user of the system may read it: chmod o-r"]
        return []


def _add(hashes: dict[str, PasswordHash | None], text: str) -> None:
    """Add the user of a line; None in place of the hash: the user cannot authenticate.

    :raises ValueError: it is no line of a user; the text has nothing of a hash
    """
    user, colon, rest = text.partition(":")
    if not colon:
        raise ValueError("expected USER:HASH")
    if not user or len(user) > LONGEST_USER or not user.isprintable() or user != user.strip():
        raise ValueError(f"{printable(user, 60)!r} is no name of a user")
    key = user_key(user)
    if key in hashes:
        raise ValueError(f"user {user!r} is there twice: the first line holds")
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
