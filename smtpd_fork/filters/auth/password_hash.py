"""PasswordHash: verify passwords with hashes in the format of Dovecot and htpasswd.

libpass parses the hashes. argon2-cffi and bcrypt compute their own kinds, libcrypt those of
crypt(3); without libcrypt, libpass computes the latter.
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
except ImportError:  # check_libraries() reports it
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
"""The kinds of hashes by prefix: the name in libpass or crypt(5), and Dovecot's scheme. All of them
are slow to compute and have a salt."""

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
"""Kinds that only libcrypt computes: the format of crypt_gensalt(3), and a function that returns
the octets of memory that a hash needs."""

_BY_LIBCRYPT = {*_BY_LIBCRYPT_ALONE, "sha512_crypt", "sha256_crypt", "md5_crypt"}

LONGEST_HASH = 512
LONGEST_PASSWORD = 1024
"""Octets; hashing a long password would take much time."""

LONGEST_BCRYPT = 72
"""Octets of a password that bcrypt uses; all programs ignore the rest."""

_MOST: Mapping[str, Mapping[str, int]] = {
    "argon2": {"memory_cost": 1 << 20, "rounds": 64, "parallelism": 64},
    "bcrypt": {"rounds": 16},
    "sha512_crypt": {"rounds": 5_000_000},
    "sha256_crypt": {"rounds": 5_000_000},
}
"""Maximum costs: a hash takes some seconds, or 1 GiB. More is a typing error, or an attack."""

_MOST_OCTETS = 1 << 30
"""Maximum octets of memory of a hash of yescrypt or scrypt."""


def check_libraries() -> None:
    """Import the libraries that verify hashes.

    :raises MissingLibraryError: a library is not installed
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
    """A hash that passwords are verified with.

    :param text: the hash, with or without Dovecot's prefix ``{SCHEME}``
    :raises ValueError: the text is not a hash, or of a kind that is not supported
    :ivar weak: whether an attacker finds the password of the hash quickly
    """

    __slots__ = ("_by_libcrypt", "_name", "_text", "weak")

    def __init__(self, text: str) -> None:
        scheme = _PREFIX.match(text)
        bare = text[scheme.end() :] if scheme else text
        self._name = _name_of(bare, scheme[1].upper() if scheme else "CRYPT")
        self._text = bare
        self.weak = self._name in _WEAK
        if len(bare) > LONGEST_HASH or not bare.isascii():
            raise ValueError("not a password hash")
        self._by_libcrypt = self._name in _BY_LIBCRYPT and libcrypt.computes(bare)
        if self._name in _BY_LIBCRYPT_ALONE:
            _check_memory(self._name, bare)
            if not self._by_libcrypt:
                raise ValueError(f"this machine has no libcrypt that computes {self._name}")
        else:
            _check_costs(self._name, bare)

    def verify(self, password: bytes) -> bool:
        """Return whether it is the hash of *password*. Blocks for up to some seconds.

        :raises HashError: the hash cannot be computed because memory is low
        """
        longest = libcrypt.LONGEST_PASSWORD if self._by_libcrypt else LONGEST_PASSWORD
        fits = 0 < len(password) <= longest and b"\0" not in password
        if not fits:
            password = b"x"  # compute a hash anyway: the duration is not to reveal anything
        if self._by_libcrypt:
            return compare_digest(libcrypt.hash_of(password, self._text), self._text) and fits
        if self._name == "bcrypt":
            password = password[:LONGEST_BCRYPT]
        return bool(_handler(self._name).verify(password, self._text)) and fits

    def __repr__(self) -> str:
        return f"<PasswordHash {self._name}>"


def _name_of(bare: str, scheme: str) -> str:
    """Return the name of the kind of a hash.

    :raises ValueError: the kind is not supported, or does not match the scheme
    """
    found = _BEGINNING.match(bare)
    name, dovecots = _SCHEMES.get(found[0], ("", "")) if found else ("", "")
    if scheme not in {"CRYPT", dovecots} or not name:
        kind = scheme if scheme != "CRYPT" else found[0] if found else "this"
        raise ValueError(f"{kind} is not a supported kind of hash; {_NOT_SUPPORTED}")
    return name


def _check_costs(name: str, bare: str) -> None:
    """Check the costs of a hash of a kind that libpass knows.

    :raises ValueError: the hash is malformed, or its costs are too high
    """
    try:
        parsed = _handler(name).from_string(bare)
    except (TypeError, ValueError) as error:
        raise ValueError(f"not a valid {name} hash: {_without(str(error), bare)}") from None
    if not parsed.checksum:
        raise ValueError(f"the {name} hash is incomplete")
    for cost, most in _MOST.get(name, {}).items():
        if getattr(parsed, cost) > most:
            raise ValueError(f"{cost} of the {name} hash is more than {most}")


def _check_memory(name: str, bare: str) -> None:
    """Check the memory that a hash needs, for kinds that only libcrypt computes.

    :raises ValueError: the hash is malformed, or needs too much memory
    """
    pattern, octets = _BY_LIBCRYPT_ALONE[name]
    found = pattern.fullmatch(bare)
    if found is None:
        raise ValueError(f"not a valid {name} hash")
    if octets(*map(_number, found.groups())) > _MOST_OCTETS:
        raise ValueError(f"the {name} hash needs more than {_MOST_OCTETS >> 20} MiB")


def _number(digits: str) -> int:
    """Return the value of a number in the digits of crypt(5), least significant digit first."""
    return sum(_DIGITS.index(digit) << 6 * place for place, digit in enumerate(digits))


def _without(text: str, secret: str) -> str:
    return text.replace(secret, "***")[:100]
