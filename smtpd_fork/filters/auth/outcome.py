"""Outcome: the result of an attempt to authenticate, and the replies to AUTH."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = [
    "DENIED", "DISABLED", "EXPIRED", "NEEDS_AUTH", "NEEDS_TLS", "NOT_BASE64", "TEMPORARY",
    "TOO_LONG", "TOO_MANY_FAILURES", "UNKNOWN_MECHANISM", "USER_HAS_TOO_MANY", "WRONG", "Outcome",
    "RefusedError",
]  # fmt: skip

WRONG = "535 5.7.8 Authentication credentials invalid"
"""For unknown users as well, so that a client cannot find out which users exist."""

DENIED = "535 5.7.1 Not authorized"
DISABLED = "535 5.7.1 The account is disabled"
EXPIRED = "535 5.7.1 The password has expired"
TEMPORARY = "454 4.7.0 Temporary authentication failure"
TOO_LONG = "500 5.5.6 Authentication exchange line is too long"
NOT_BASE64 = "501 5.5.2 Can't decode base64"
NEEDS_AUTH = "530 5.7.0 Authentication required"
NEEDS_TLS = "538 5.7.11 Encryption required for requested authentication mechanism"
UNKNOWN_MECHANISM = "504 5.5.4 Unrecognized authentication type"
TOO_MANY_FAILURES = "421 4.7.0 Too many failed attempts to authenticate, try again later"
USER_HAS_TOO_MANY = "454 4.7.0 Too many failed attempts to authenticate, try again later"


class Outcome(NamedTuple):
    """The result of an attempt.

    :ivar user: the authenticated user; empty after a failure
    :ivar data: the value of ``session.auth_data``; None: *user*
    :ivar reply: the reply after a failure
    :ivar reason: the reason of a failure, for the log
    """

    user: str = ""
    data: Any = None
    reply: str = ""
    reason: str = ""


class RefusedError(Exception):
    """An attempt ends before the credentials are verified.

    :param reply: the reply to the client; empty if it was already sent
    :param reason: the reason for the log; empty: nothing is logged
    """

    def __init__(self, reply: str, reason: str = "") -> None:
        super().__init__(reply)
        self.reply = reply
        self.reason = reason
