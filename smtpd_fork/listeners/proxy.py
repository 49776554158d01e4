"""ProxyHeaders: connections of proxies that send a PROXY header (proxy-protocol.txt).

The header is read from the raw socket. No byte after it is read: the client sent it, and it may
be part of a TLS handshake.
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

from smtpd_fork.gate import ClientLine, Refusal, TrustedHosts
from smtpd_fork.listeners.pending_clients import WatchedClients
from smtpd_fork.listeners.proxy_header import (
    MAX_V2_BYTES,
    HeaderError,
    bytes_to_read,
    is_complete,
    named_client,
    parse,
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

TIMEOUT_CAUSES = "the client did not connect through the proxy, or the proxy sends no header"


def not_trusted(peer: Peer) -> Refusal:
    """Return the refusal of a peer that is not allowed to send PROXY headers."""
    text = "Connections are accepted from trusted proxies only"
    return Refusal("proxy_trust", host_of(peer) or "unix", 1, 0, text=text)


class ProxyHeaders(WatchedClients):
    """Holds connections of proxies until their headers have arrived.

    :param seconds: the time limit for a header
    :param gate: evaluates the client that a header names
    :param reporter: writes log lines about clients
    :ivar trusted: hosts behind a proxy that may name their own clients by XCLIENT
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

    def _on_readable(self, client: PendingClient) -> bool:
        try:
            if not self._read(client):
                return False
            data = parse(client.header)
        except (HeaderError, OSError) as error:
            self._remove(client)
            self._close(client, str(error))
        else:
            self._remove(client)
            self._identify(client, data)
        return True

    def _read(self, client: PendingClient) -> bool:
        """Read the received part of a header; return whether it is complete.

        :raises HeaderError: it is not a PROXY header, or the proxy has closed the connection
        """
        while not is_complete(client.header):
            try:
                peeked = client.sock.recv(MAX_V2_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            if not peeked:
                raise HeaderError("the connection was closed")
            # Read now: the event loop would report data that was only peeked at again and again.
            client.header += client.sock.recv(bytes_to_read(client.header, peeked))
        return True

    def _identify(self, client: PendingClient, data: ProxyData) -> None:
        ticket, peer = client.ticket, named_client(data)
        ticket.proxy = data
        ticket.sender = client.peer
        # A proxy that names itself as the client sends a health check: version 1 has no LOCAL.
        if peer is not None and host_of(peer) != host_of(client.peer):
            client.peer = peer
            refusal = self._gate.identify(ticket, peer, proxy=peer in self.trusted)
            if refusal is not None:
                self._refuse(client, refusal)
                return
        self._begin(client, ticket)

    def _on_timeout(self, client: PendingClient) -> None:
        self._close(client, f"timeout; {TIMEOUT_CAUSES}", logging.WARNING)

    def _close(self, client: PendingClient, reason: str, level: int = logging.INFO) -> None:
        session = client.ticket.id or ""
        line = ClientLine.of(log, level, client.peer, "no PROXY header", reason, session=session)
        self._reporter.note(line)
        client.close()
