"""claimed_user: read the user name that a client claims from its response to a mechanism.

The name is not verified; it is used only for limits and for the log.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

__all__ = ["LONGEST_USER", "claimed_user", "plain_parts", "user_key"]

LONGEST_USER = 255
"""Maximum characters of a user name; an address has at most 254 (RFC 5321 4.5.3.1.3)."""

_PARTS_OF_PLAIN = 3
_BEARER = re.compile(rb"(?:^|[\x01,])(?:user|a)=([^\x01,]*)")
_SCRAM = re.compile(rb"(?:^|,)n=([^,]*)")


def plain_parts(response: bytes) -> tuple[str, str, bytes] | None:
    """Return authorization identity, user and password of a PLAIN response (RFC 4616).

    None means that the response is malformed.
    """
    parts = response.split(b"\0")
    if len(parts) != _PARTS_OF_PLAIN:
        return None
    try:
        return parts[0].decode(), parts[1].decode(), parts[2]
    except UnicodeDecodeError:
        return None


def _of_plain(response: bytes) -> bytes:
    parts = response.split(b"\0")
    return parts[1] if len(parts) == _PARTS_OF_PLAIN else b""


def _of_scram(response: bytes) -> bytes:
    found = _SCRAM.search(response)
    return found[1].replace(b"=2C", b",").replace(b"=3D", b"=") if found else b""


def _of_bearer(response: bytes) -> bytes:
    found = _BEARER.search(response)
    return found[1].replace(b"=2C", b",").replace(b"=3D", b"=") if found else b""


_READERS: Mapping[str, Callable[[bytes], bytes]] = {
    "PLAIN": _of_plain,
    "LOGIN": lambda response: response,
    "CRAM-MD5": lambda response: response.rpartition(b" ")[0],
    "SCRAM-SHA-1": _of_scram,
    "SCRAM-SHA-256": _of_scram,
    "OAUTHBEARER": _of_bearer,
    "XOAUTH2": _of_bearer,
}


def claimed_user(mechanism: str, response: bytes) -> str:
    """Return the user name in the first response to a mechanism; empty if there is none."""
    reader = _READERS.get(mechanism)
    if reader is None:
        return ""
    return reader(response).decode("utf-8", "replace")[: LONGEST_USER + 1]


def user_key(user: str) -> str:
    """Return a user name in the form in which names are compared."""
    return user.lower()
