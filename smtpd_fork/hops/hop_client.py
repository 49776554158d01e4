"""HopClient: the interface between a connection and the client's side of a protocol. Sans-io.

:meth:`HopClient.receive` gets bytes of the server, and :meth:`HopClient.data_to_send` returns the
bytes to send. Implementations are SMTP and LMTP (:mod:`smtpd_fork.hops.client`), and the policy
delegation protocol (:mod:`smtpd_fork.hops.policy`).
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
    """The state of a client, named after the reply that it waits for."""

    GREETING = auto()
    EHLO = auto()
    HELO = auto()
    STARTTLS = auto()
    HANDSHAKE = auto()
    """The TLS handshake, until :meth:`HopClient.encrypted` is called."""
    AUTH = auto()
    CLIENT = auto()
    """The reply to XCLIENT, which accepts or refuses the client."""
    READY = auto()
    """Idle: a transaction may begin."""
    ENVELOPE = auto()
    """The replies to MAIL, RCPT and DATA."""
    CONTENT = auto()
    """The replies to the content, which is being sent."""
    ANSWER = auto()
    """The answer of a policy server."""
    RESET = auto()
    BROKEN = auto()
    """The connection cannot be used any more; :attr:`HopClient.fault` has the reason."""


class HopClient(ABC):
    """The client's side of a protocol on one connection.

    :param state: the first state
    :cvar server: the kind of server for the log
    :cvar farewell: bytes to send before closing the connection
    :ivar state: the current state
    :ivar secure: whether the connection is encrypted
    :ivar offered: extensions of the server: parameters by name
    :ivar has_answered: whether the server has answered a command of the current order
    :ivar fault: why the connection has failed, or None
    """

    server: ClassVar[str] = "the hop"
    farewell: ClassVar[bytes] = b""

    def __init__(self, state: State) -> None:
        self.state = state
        self.secure = False
        self.offered: dict[str, str] = {}
        self.has_answered = False
        self.fault: HopError | None = None
        self._output: list[bytes] = []

    @abstractmethod
    def begin(self, order: Any) -> None:
        """Begin an order; the state has to be READY. *order* will contain the result."""

    @abstractmethod
    def receive(self, data: bytes) -> None:
        """Handle bytes of the server; check :attr:`state` and :meth:`data_to_send` afterwards."""

    def data_to_send(self) -> bytes:
        """Return the bytes to send next; empty while the client waits for the server."""
        output = self._output[0] if len(self._output) == 1 else b"".join(self._output)
        self._output.clear()
        return output

    def encrypted(self) -> None:  # noqa: B027 - only some protocols have TLS within
        """Continue after the TLS handshake."""

    def fail(self, reason: str, reply: str = NOT_AVAILABLE) -> None:
        """Mark the connection as broken, because it has ended or an error has occurred."""
        if self.state is not State.BROKEN:
            self.state = State.BROKEN
            self._output.clear()
            self.fault = ConnectionLostError(reason, reply, has_answered=self.has_answered)
