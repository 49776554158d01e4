"""libcrypt: call crypt(3) of libxcrypt, for the hashes of shadow(5), such as yescrypt.

The calls release the interpreter lock, so the event loop runs meanwhile. Python removed its module
``crypt`` in 3.13.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ctypes import CDLL

__all__ = ["LONGEST_PASSWORD", "HashError", "computes", "hash_of"]

LONGEST_PASSWORD = 511
"""Octets (CRYPT_MAX_PASSPHRASE_SIZE is 512, including the final NUL)."""

_NAMES = ("libcrypt.so.1", "libcrypt.so.2")
"""The second name is that of libxcrypt without its obsolete functions."""

_DATA_SIZE = 32768
"""Octets of struct crypt_data."""

_COMPUTED = {0, 3, 4}
"""Results of crypt_checksalt(3) that allow a computation: OK, METHOD_LEGACY, TOO_CHEAP."""


class HashError(Exception):
    """A hash cannot be computed."""


@cache
def _library() -> CDLL | None:
    """Return libxcrypt; None if it is not installed. Other libcrypts lack crypt_checksalt()."""
    try:
        from ctypes import CDLL, c_char_p, c_int, c_void_p  # noqa: PLC0415 # the import may fail
    except (ImportError, MemoryError):  # no ctypes; MemoryDenyWriteExecute= of systemd
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
    """Return whether libcrypt of this machine computes hashes of the kind of *text*."""
    library = _library()
    return library is not None and library.crypt_checksalt(text.encode()) in _COMPUTED


def hash_of(password: bytes, text: str) -> str:
    """Return the hash of a password, with the parameters and the salt of another hash.

    :param password: at most :data:`LONGEST_PASSWORD` octets
    :param text: the other hash, of a kind for which :func:`computes` returns True
    :raises HashError: memory is low, or the other hash is malformed
    """
    from ctypes import create_string_buffer, get_errno  # noqa: PLC0415 # see above

    library = _library()
    assert library is not None
    data = create_string_buffer(_DATA_SIZE)  # one per call, for concurrent threads
    made: bytes | None = library.crypt_rn(password, text.encode(), data, _DATA_SIZE)
    if made is None:
        raise HashError(f"crypt(3): {os.strerror(get_errno())}")
    return made.decode()
