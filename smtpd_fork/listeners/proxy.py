"""ProxyHeaders: connections of proxies, whose header names the client (proxy-protocol.txt).

The header is read from the raw socket, and not one byte more: what follows it is the client's,
perhaps a TLS handshake.
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

from smtpd_fork.gate import ClientLine, Refusal, TrustedHosts
from smtpd_fork.listeners.pending_clients import WatchedClients
from smtpd_fork.listeners.proxy_header import (
    LONGEST_V2,
    HeaderError,
    is_whole,
    missing,
    parse,
    true_peer,
)
from smtpd_fork.peer_address import host_of

if TYPE_CHECKING:
    import asyncio

    from aiosmtpd.proxy_protocol import ProxyData

    from smtpd_fork.gate import Gate, Reporter
    from smtpd_fork.listeners.pending_clients import Begin, PendingClient, Refuse
    from smtpd_fork.peer_address import Peer

__all__ = ["ProxyHeaders", "not_trusted"]

log = logging.getLogger("smtpd_fork.listeners")

NOT_BY_THE_PROXY = "the client did not come by way of the proxy, or the proxy sends no header"


def not_trusted(peer: Peer) -> Refusal:
    """Return the refusal of a client that may send no PROXY header."""
    text = "Connections are accepted from trusted proxies only"
    return Refusal("proxy_trust", host_of(peer) or "unix", 1, 0, text=text)


class ProxyHeaders(WatchedClients):
    """Holds connections of proxies until their headers have come.

    :param seconds: how long a header may take
    :param gate: judges the client that a header names
    :param reporter: writes lines about clients
    :ivar trusted: the clients behind a proxy that will name theirs by XCLIENT
    """

    phase = "proxy-header"

    def __init__(
        self,
        seconds: float,
        loop: asyncio.AbstractEventLoop,
        begin: Begin,
        refuse: Refuse,
        *,
        gate: Gate,
        reporter: Reporter,
    ) -> None:
        super().__init__(seconds, loop, begin, refuse)
        self._gate = gate
        self._reporter = reporter
        self.trusted = TrustedHosts(None, unix=False)

    def _heard(self, client: PendingClient) -> bool:
        try:
            if not self._read(client):
                return False
            data = parse(client.header)
        except (HeaderError, OSError) as error:
            self._let_go(client)
            self._close(client, str(error))
        else:
            self._let_go(client)
            self._identify(client, data)
        return True

    def _read(self, client: PendingClient) -> bool:
        """Read what has come of a header; return whether it is whole.

        :raises HeaderError: it is none, or the proxy has gone
        """
        while not is_whole(client.header):
            try:
                peeked = client.sock.recv(LONGEST_V2, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            if not peeked:
                raise HeaderError("the connection was closed")
            # Taken from the socket at once: a loop would go on reporting what was only looked at.
            client.header += client.sock.recv(missing(client.header, peeked))
        return True

    def _identify(self, client: PendingClient, data: ProxyData) -> None:
        ticket, peer = client.ticket, true_peer(data)
        ticket.proxy = data
        ticket.sender = client.peer
        # One that names itself is a health check: v1 has no word for it.
        if peer is not None and host_of(peer) != host_of(client.peer):
            client.peer = peer
            refusal = self._gate.identify(ticket, peer, proxy=peer in self.trusted)
            if refusal is not None:
                self._refuse(client, refusal)
                return
        self._begin(client, ticket)

    def _over(self, client: PendingClient) -> None:
        self._close(client, f"it took too long; {NOT_BY_THE_PROXY}", logging.WARNING)

    def _close(self, client: PendingClient, reason: str, level: int = logging.INFO) -> None:
        session = client.ticket.id or ""
        line = ClientLine.of(log, level, client.peer, "no PROXY header", reason, session=session)
        self._reporter.note(line)
        client.close()
