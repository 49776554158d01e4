"""HopError: why a message did not get to the next hop; it knows the reply for our client.

::

    HopError                 the hop cannot be reached, refuses us, or breaks the protocol
    ├── HopDownError         it is known to be down, and somebody else is trying
    └── ConnectionLostError  a connection ended in the middle of a transaction
"""

from __future__ import annotations

__all__ = ["ConnectionLostError", "HopDownError", "HopError"]

NOT_AVAILABLE = "451 4.4.1 The next mail server is not available, try again later"


class HopError(Exception):
    """The next hop did not take a message, for a reason that is not the message's.

    :param reason: for the log, with the hop's address
    :ivar reply: for our client
    """

    def __init__(self, reason: str, reply: str = NOT_AVAILABLE) -> None:
        super().__init__(reason)
        self.reason = reason
        self.reply = reply


class HopDownError(HopError):
    """The hop is down, and it is not yet time to try it again."""


class ConnectionLostError(HopError):
    """A connection ended, or broke the protocol, before the hop's last reply.

    :param heard: whether the hop had answered anything of this transaction
    """

    def __init__(self, reason: str, reply: str = NOT_AVAILABLE, *, heard: bool) -> None:
        super().__init__(reason, reply)
        self.heard = heard
