"""PasswordHash: a hash of a password, as Dovecot and htpasswd write it, and whether a word is it.

libpass knows the hashes; argon2-cffi and bcrypt compute theirs, libcrypt those of crypt(3), which
libpass computes where there is no libcrypt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from hmac import compare_digest
from typing import Any

from smtpd_fork.errors import MissingLibraryError
from smtpd_fork.filters.auth import libcrypt

try:
    import passlib.hash  # type: ignore[import-untyped]  # libpass has no types
except ImportError:  # check_libraries() says so
    passlib = None

__all__ = ["PasswordHash", "check_libraries"]

_SCHEMES: Mapping[str, tuple[str, str]] = {
    "$argon2id$": ("argon2", "ARGON2ID"),
    "$argon2i$": ("argon2", "ARGON2I"),
    "$2a$": ("bcrypt", "BLF-CRYPT"),
    "$2b$": ("bcrypt", "BLF-CRYPT"),
    "$2y$": ("bcrypt", "BLF-CRYPT"),
    "$y$": ("yescrypt", ""),
    "$gy$": ("gost-yescrypt", ""),
    "$7$": ("scrypt", ""),
    "$6$": ("sha512_crypt", "SHA512-CRYPT"),
    "$5$": ("sha256_crypt", "SHA256-CRYPT"),
    "$1$": ("md5_crypt", "MD5-CRYPT"),
    "$apr1$": ("apr_md5_crypt", ""),
}
"""By beginning: libpass's name or crypt(5)'s, and Dovecot's. All are slow, and have a salt."""

_WEAK = {"md5_crypt", "apr_md5_crypt"}

_PREFIX = re.compile(r"\{([A-Za-z0-9.-]+)\}")
_BEGINNING = re.compile(r"\$[a-z0-9-]+\$")
_NOT_SUPPORTED = "write one of ARGON2ID, BLF-CRYPT (bcrypt), SHA512-CRYPT, SHA256-CRYPT or yescrypt"

_DIGITS = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_REST = r"[./0-9A-Za-z]{1,86}\$[./0-9A-Za-z]{43}"
_YESCRYPT = re.compile(rf"\$g?y\$j([./0-9A-Za-j])([./0-9A-Za-j])\${_REST}")
_SCRYPT = re.compile(rf"\$7\$([./0-9A-Za-z])([./0-9A-Za-z]{{5}})([./0-9A-Za-z]{{5}}){_REST}")


def _octets_of_yescrypt(log_n: int, r: int) -> int:
    return 128 * (r + 1) << (log_n + 1)


def _octets_of_scrypt(log_n: int, r: int, p: int) -> int:
    return 128 * r * p << log_n


_BY_LIBCRYPT_ALONE: Mapping[str, tuple[re.Pattern[str], Callable[..., int]]] = {
    "yescrypt": (_YESCRYPT, _octets_of_yescrypt),
    "gost-yescrypt": (_YESCRYPT, _octets_of_yescrypt),
    "scrypt": (_SCRYPT, _octets_of_scrypt),
}
"""By name: how it is written, as crypt_gensalt(3) does, and the octets that it goes through."""

_BY_LIBCRYPT = {*_BY_LIBCRYPT_ALONE, "sha512_crypt", "sha256_crypt", "md5_crypt"}

LONGEST_HASH = 512
LONGEST_PASSWORD = 1024
"""Octets; a hash of more takes an attacker's time, and ours."""

LONGEST_BCRYPT = 72
"""Octets of a password that bcrypt takes; all programs drop the rest."""

_MOST: Mapping[str, Mapping[str, int]] = {
    "argon2": {"memory_cost": 1 << 20, "rounds": 64, "parallelism": 64},
    "bcrypt": {"rounds": 16},
    "sha512_crypt": {"rounds": 5_000_000},
    "sha256_crypt": {"rounds": 5_000_000},
}
"""The costs of a hash that takes some seconds, or 1 GiB; more is a typing error, or an attack."""

_MOST_OCTETS = 1 << 30
"""The same for yescrypt and scrypt."""


def check_libraries() -> None:
    """See that there is what verifies hashes, and import all of it.

    :raises MissingLibraryError: it is not there
    """
    libraries = ["libpass", "argon2-cffi", "bcrypt"]
    if passlib is None:
        raise MissingLibraryError("auth with users", libraries, "passwords")
    for name in {name for name, _ in _SCHEMES.values()} - _BY_LIBCRYPT_ALONE.keys():
        handler = _handler(name)
        try:
            if hasattr(handler, "set_backend"):
                handler.set_backend()
        except passlib.exc.MissingBackendError:
            raise MissingLibraryError("auth with users", libraries, "passwords") from None


def _handler(name: str) -> Any:
    return getattr(passlib.hash, name)


class PasswordHash:
    """A hash that can be verified.

    :param text: it, perhaps with Dovecot's ``{SCHEME}`` in front of it
    :raises ValueError: it is none, or of no safe kind
    :ivar weak: whether its password is found quickly by one who has the hash
    """

    __slots__ = ("_by_libcrypt", "_name", "_text", "weak")

    def __init__(self, text: str) -> None:
        scheme = _PREFIX.match(text)
        bare = text[scheme.end() :] if scheme else text
        self._name = _name_of(bare, scheme[1].upper() if scheme else "CRYPT")
        self._text = bare
        self.weak = self._name in _WEAK
        if len(bare) > LONGEST_HASH or not bare.isascii():
            raise ValueError("it is no hash")
        self._by_libcrypt = self._name in _BY_LIBCRYPT and libcrypt.computes(bare)
        if self._name in _BY_LIBCRYPT_ALONE:
            _check_memory(self._name, bare)
            if not self._by_libcrypt:
                raise ValueError(f"this machine has no libcrypt that computes {self._name}")
        else:
            _check_costs(self._name, bare)

    def verify(self, password: bytes) -> bool:
        """Whether it is the hash of *password*. It takes as long as the hash is made to take.

        :raises HashError: it cannot be computed, as memory is short
        """
        longest = libcrypt.LONGEST_PASSWORD if self._by_libcrypt else LONGEST_PASSWORD
        fits = 0 < len(password) <= longest and b"\0" not in password
        if not fits:
            password = b"x"  # it takes the same time
        if self._by_libcrypt:
            return compare_digest(libcrypt.hash_of(password, self._text), self._text) and fits
        if self._name == "bcrypt":
            password = password[:LONGEST_BCRYPT]
        return bool(_handler(self._name).verify(password, self._text)) and fits

    def __repr__(self) -> str:
        return f"<PasswordHash {self._name}>"


def _name_of(bare: str, scheme: str) -> str:
    """Return the name of a hash."""
    found = _BEGINNING.match(bare)
    name, dovecots = _SCHEMES.get(found[0], ("", "")) if found else ("", "")
    if scheme not in {"CRYPT", dovecots} or not name:
        kind = scheme if scheme != "CRYPT" else found[0] if found else "this"
        raise ValueError(f"{kind} is no kind of hash that is taken; {_NOT_SUPPORTED}")
    return name


def _check_costs(name: str, bare: str) -> None:
    """Check a hash that libpass knows.

    :raises ValueError: it is none, or takes too much
    """
    try:
        parsed = _handler(name).from_string(bare)
    except (TypeError, ValueError) as error:
        raise ValueError(f"no {name} hash: {_without(str(error), bare)}") from None
    if not parsed.checksum:
        raise ValueError(f"the {name} hash is cut off")
    for cost, most in _MOST.get(name, {}).items():
        if getattr(parsed, cost) > most:
            raise ValueError(f"{cost} of the {name} hash is more than {most}")


def _check_memory(name: str, bare: str) -> None:
    """Check a hash of crypt(5) that libpass does not know.

    :raises ValueError: it is none, or takes too much
    """
    pattern, octets = _BY_LIBCRYPT_ALONE[name]
    found = pattern.fullmatch(bare)
    if found is None:
        raise ValueError(f"no {name} hash")
    if octets(*map(_number, found.groups())) > _MOST_OCTETS:
        raise ValueError(f"the {name} hash takes more than {_MOST_OCTETS >> 20} MiB")


def _number(digits: str) -> int:
    """Return the number that digits of crypt(5) are; the first one is the lowest."""
    return sum(_DIGITS.index(digit) << 6 * place for place, digit in enumerate(digits))


def _without(text: str, secret: str) -> str:
    return text.replace(secret, "***")[:100]
