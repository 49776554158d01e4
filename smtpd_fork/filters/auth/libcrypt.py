"""libcrypt: crypt(3) of this machine, by libxcrypt: the hashes of shadow(5), yescrypt among them.

It computes without the interpreter's lock, so the event loop goes on meanwhile. Python's own module
for it ended with 3.12.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ctypes import CDLL

__all__ = ["LONGEST_PASSWORD", "HashError", "computes", "hash_of"]

LONGEST_PASSWORD = 511
"""Octets (CRYPT_MAX_PASSPHRASE_SIZE, with the octet that ends it)."""

_NAMES = ("libcrypt.so.1", "libcrypt.so.2")
"""The second is without the functions that only old programs call."""

_DATA_SIZE = 32768
"""Octets of struct crypt_data."""

_COMPUTED = {0, 3, 4}
"""What crypt_checksalt(3) says: ok, legacy, too cheap."""


class HashError(Exception):
    """A hash cannot be computed."""


@cache
def _library() -> CDLL | None:
    """Return libxcrypt; None if it is not there. Others have no crypt_rn and crypt_checksalt."""
    try:
        from ctypes import CDLL, c_char_p, c_int, c_void_p  # noqa: PLC0415 # where it may fail
    except (ImportError, MemoryError):  # Python without it; memory that may not be executed
        return None
    for name in _NAMES:
        try:
            library = CDLL(name, use_errno=True)
            library.crypt_rn.argtypes = [c_char_p, c_char_p, c_void_p, c_int]
            library.crypt_rn.restype = c_char_p
            library.crypt_checksalt.argtypes = [c_char_p]
        except (OSError, AttributeError):
            continue
        return library
    return None


def computes(text: str) -> bool:
    """Whether this machine computes hashes that begin as *text* does."""
    library = _library()
    return library is not None and library.crypt_checksalt(text.encode()) in _COMPUTED


def hash_of(password: bytes, text: str) -> str:
    """Return the hash of a password, with the parameters and the salt of another hash.

    :param password: at most :data:`LONGEST_PASSWORD` octets
    :param text: the other hash, of a kind that :func:`computes` knows
    :raises HashError: memory is short, or the other hash is none
    """
    from ctypes import create_string_buffer, get_errno  # noqa: PLC0415 # see above

    library = _library()
    assert library is not None
    data = create_string_buffer(_DATA_SIZE)  # its own, so that threads may compute at once
    made: bytes | None = library.crypt_rn(password, text.encode(), data, _DATA_SIZE)
    if made is None:
        raise HashError(f"crypt(3): {os.strerror(get_errno())}")
    return made.decode()
