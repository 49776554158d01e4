"""HopClient: what a connection to a server has to know of the client's side of a protocol. Sans-io.

Bytes of the server are fed to :meth:`HopClient.receive`, and :meth:`HopClient.take` gives what is
to be sent. SMTP, LMTP (:mod:`smtpd_fork.hops.client`) and the policy delegation protocol
(:mod:`smtpd_fork.hops.policy`) are such protocols.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import IntEnum, auto
from typing import TYPE_CHECKING, Any, ClassVar

from smtpd_fork.hops.errors import NOT_AVAILABLE, ConnectionLostError

if TYPE_CHECKING:
    from smtpd_fork.hops.errors import HopError

__all__ = ["HopClient", "State"]


class State(IntEnum):
    """What a client waits for."""

    GREETING = auto()
    EHLO = auto()
    HELO = auto()
    STARTTLS = auto()
    HANDSHAKE = auto()
    """Not for a reply: TLS begins, and ends with :meth:`HopClient.encrypted`."""
    AUTH = auto()
    CLIENT = auto()
    """For the reply to XCLIENT: the hop judges the client."""
    READY = auto()
    """For nothing: a transaction may begin."""
    ENVELOPE = auto()
    """For the replies to MAIL, RCPT and DATA."""
    CONTENT = auto()
    """For the replies to the message, which is being sent."""
    ANSWER = auto()
    """For the answer of a policy server."""
    RESET = auto()
    BROKEN = auto()
    """The connection is of no use any more; :attr:`HopClient.fault` says why."""


class HopClient(ABC):
    """The client's side of one connection, without the connection.

    :param state: what is waited for first
    :cvar server: what it is, for the log
    :cvar farewell: what is sent before the connection is closed
    :ivar state: what is waited for
    :ivar secure: whether there is TLS
    :ivar offered: the server's extensions: parameters by name
    :ivar heard: whether the server has answered anything of the order in hand
    :ivar fault: why the connection broke
    """

    server: ClassVar[str] = "the hop"
    farewell: ClassVar[bytes] = b""

    def __init__(self, state: State) -> None:
        self.state = state
        self.secure = False
        self.offered: dict[str, str] = {}
        self.heard = False
        self.fault: HopError | None = None
        self._output: list[bytes] = []

    @abstractmethod
    def begin(self, order: Any) -> None:
        """Begin an order; the state has to be READY. Its result will be in *order*."""

    @abstractmethod
    def receive(self, data: bytes) -> None:
        """Take bytes of the server; then see :attr:`state`, and :meth:`take`."""

    def take(self) -> bytes:
        """Return what is to be sent next; nothing if it is the server's turn."""
        output = self._output[0] if len(self._output) == 1 else b"".join(self._output)
        self._output.clear()
        return output

    def encrypted(self) -> None:  # noqa: B027 - only some protocols have TLS within
        """Go on after the TLS handshake."""

    def lose(self, reason: str, reply: str = NOT_AVAILABLE) -> None:
        """Break the connection, which has ended or whose time is over."""
        if self.state is not State.BROKEN:
            self.state = State.BROKEN
            self._output.clear()
            self.fault = ConnectionLostError(reason, reply, heard=self.heard)
