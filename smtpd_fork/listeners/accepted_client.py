"""AcceptedClient: a client between accept(2) and its session."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from msgspec import Struct

from smtpd_fork.listeners.refusals import refuse

if TYPE_CHECKING:
    import socket

    from smtpd_fork.listeners.listener import Listener
    from smtpd_fork.peer_address import SocketAddress

__all__ = ["CLIENT_GONE", "AcceptedClient", "close"]

MAX_DISMISSED = 4096
"""Clients of one backlog that are answered at a stop. The limit ends the loop if clients keep
arriving; it is the default maximum of a backlog on Linux (net.core.somaxconn)."""

CLIENT_GONE = frozenset({
    errno.ECONNABORTED, errno.EINTR, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.ENOPROTOOPT,
    errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT,
    errno.ECONNRESET,
})  # fmt: skip
"""Errors of accept(2) that concern one client only, such as pending network errors."""


class AcceptedClient(Struct, eq=False):
    """An accepted socket that has no transport yet.

    :ivar listener: the listener that accepted it
    :ivar sock: the socket; the owner of the client closes it
    :ivar peer: the address from accept(2), or from a PROXY header
    """

    listener: Listener
    sock: socket.socket
    peer: SocketAddress | str

    def reply_and_close(self, reply: bytes) -> None:
        """Send *reply*, if the client can read it, and close, without blocking."""
        # Under implicit TLS the client cannot read a reply in plaintext.
        refuse(self.sock, b"" if self.listener.tls else reply)


def close(listener: Listener, reply: bytes) -> int:
    """Close a listener after sending *reply* to the clients in its backlog; return their number."""
    answered = 0
    # Another process accepts the clients in the backlog of an inherited socket.
    for _ in range(0 if listener.inherited else MAX_DISMISSED):
        try:
            client = AcceptedClient(listener, *listener.accept())
        except OSError as error:
            if error.errno not in CLIENT_GONE:
                break
        else:
            client.reply_and_close(reply)
            answered += 1
    listener.close()
    return answered
