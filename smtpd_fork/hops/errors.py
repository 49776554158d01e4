"""HopError: the reason why a message was not passed to the next hop, with the reply to our client.

::

    HopError                 the hop is unreachable, refuses us, or violates the protocol
    ├── HopDownError         the hop is known to be down, and is not tried for this message
    └── ConnectionLostError  the connection ended in the middle of a transaction
"""

from __future__ import annotations

__all__ = ["ConnectionLostError", "HopDownError", "HopError"]

NOT_AVAILABLE = "451 4.4.1 The next mail server is not available, try again later"


class HopError(Exception):
    """The next hop did not accept a message, for a reason other than the message itself.

    :param reason: the reason for the log, with the address of the hop
    :ivar reply: the reply to our client
    """

    def __init__(self, reason: str, reply: str = NOT_AVAILABLE) -> None:
        super().__init__(reason)
        self.reason = reason
        self.reply = reply


class HopDownError(HopError):
    """The hop is down, and it is not yet time to try it again."""


class ConnectionLostError(HopError):
    """A connection ended, or the hop violated the protocol, before the last reply.

    :param has_answered: whether the hop had answered a command of the transaction
    """

    def __init__(self, reason: str, reply: str = NOT_AVAILABLE, *, has_answered: bool) -> None:
        super().__init__(reason, reply)
        self.has_answered = has_answered
