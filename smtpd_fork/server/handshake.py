"""Handshake: the TLS handshake of a connection with implicit TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.smtp.protocol_adapter import ProtocolAdapter

if TYPE_CHECKING:
    import asyncio
    import socket

    from smtpd_fork.smtp import Connection

__all__ = ["Handshake"]


class Handshake:
    """A TLS handshake, after which a session begins.

    :ivar begun: whether the event loop owns the socket
    """

    __slots__ = ("begun", "connection", "sock")

    def __init__(self, connection: Connection, sock: socket.socket) -> None:
        self.connection = connection
        self.sock = sock
        self.begun = False

    def begin(self) -> asyncio.BufferedProtocol:
        """Return the protocol for the event loop, which owns the socket from then on."""
        self.begun = True
        return ProtocolAdapter(self.connection.protocol)
