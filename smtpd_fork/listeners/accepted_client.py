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
"""Clients of one backlog answered at a stop, as more may be arriving: what Linux keeps at most
(net.core.somaxconn)."""

CLIENT_GONE = frozenset({
    errno.ECONNABORTED, errno.EINTR, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.ENOPROTOOPT,
    errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT,
    errno.ECONNRESET,
})  # fmt: skip
"""What accept(2) says of one client, pending network errors among them: the next may be well."""


class AcceptedClient(Struct, eq=False):
    """A socket that was accepted, without a transport.

    :ivar listener: which one accepted it
    :ivar sock: the socket; it belongs to the owner of the client
    :ivar peer: as accept(2) named it, or a PROXY header
    """

    listener: Listener
    sock: socket.socket
    peer: SocketAddress | str

    def dismiss(self, reply: bytes) -> None:
        """Send *reply*, if the client can read it, and close; never waits."""
        # A client that speaks TLS first cannot read a reply in plaintext.
        refuse(self.sock, b"" if self.listener.tls else reply)


def close(listener: Listener, reply: bytes) -> int:
    """Close a listener; clients in its backlog get *reply*. Return how many there were."""
    answered = 0
    # The backlog of an inherited socket belongs to the process that inherits it next.
    for _ in range(0 if listener.inherited else MAX_DISMISSED):
        try:
            client = AcceptedClient(listener, *listener.accept())
        except OSError as error:
            if error.errno not in CLIENT_GONE:
                break
        else:
            client.dismiss(reply)
            answered += 1
    listener.close()
    return answered
