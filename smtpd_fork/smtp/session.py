"""Session: aiosmtpd's, with an id that all log lines and replies share."""

from __future__ import annotations

import itertools
import secrets
from typing import TYPE_CHECKING

import aiosmtpd.smtp

if TYPE_CHECKING:
    import asyncio

__all__ = ["Session", "new_session_id"]

_process = secrets.token_hex(3)
_numbers = itertools.count(1)


def new_session_id() -> str:
    """Return an id that is unique to this process, and most likely among processes."""
    return f"{_process}-{next(_numbers):x}"


class Session(aiosmtpd.smtp.Session):
    """What is known of one client.

    :ivar id: names the session in the logs, in ``Received:`` and in the reply to DATA
    :ivar lmtp: whether LMTP is spoken, not SMTP
    :ivar local: the address that the client connected to, as the socket gives it
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, session_id: str) -> None:
        super().__init__(loop)
        self.id = session_id
        self.local: object = None
        self.lmtp = False
