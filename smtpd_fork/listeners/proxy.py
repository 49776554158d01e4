"""Proxy: connections of proxies, whose PROXY header names the client (proxy-protocol.txt).

The header is read from the raw socket, and not one byte more: what follows it is the client's,
perhaps a TLS handshake.
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

from smtpd_fork.gate import ClientLine
from smtpd_fork.listeners.pending_clients import PendingClient, PendingClients
from smtpd_fork.listeners.proxy_header import (
    LONGEST_V2,
    HeaderError,
    is_whole,
    missing,
    parse,
    true_peer,
)
from smtpd_fork.net import source_key

if TYPE_CHECKING:
    import asyncio

    from aiosmtpd.proxy_protocol import ProxyData

    from smtpd_fork.gate import Gate, Reporter
    from smtpd_fork.listeners.pending_clients import Refuse, Welcome

__all__ = ["ProxyHeaders"]

log = logging.getLogger("smtpd_fork.listeners")


class ProxyHeaders(PendingClients):
    """Holds connections of proxies until their headers have come.

    :param seconds: how long a header may take
    :param gate: judges whom a header speaks for
    :param welcome: takes who may come in: listener, socket, true peer, ticket
    :param refuse: answers who may not, and closes
    :param reporter: writes lines about clients
    """

    def __init__(
        self,
        seconds: float,
        loop: asyncio.AbstractEventLoop,
        gate: Gate,
        *,
        welcome: Welcome,
        refuse: Refuse,
        reporter: Reporter,
    ) -> None:
        super().__init__("proxy-header", seconds, loop)
        self._gate = gate
        self._reporter = reporter
        self._welcome = welcome
        self._refuse = refuse

    def _heard(self, client: PendingClient) -> None:
        try:
            if not self._read(client):
                return
            data = parse(client.header)
        except (HeaderError, OSError) as error:
            self._let_go(client)
            self._report(client, str(error))
            self._drop(client)
            return
        self._let_go(client)
        self._identify(client, data)

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
        peer = true_peer(data)
        client.ticket.proxy = data
        client.ticket.sender = client.peer
        if peer is not None and source_key(peer) == source_key(client.peer):
            peer = None  # it speaks for itself: a health check, as v1 has no word for one
        if peer is not None:
            refusal = self._gate.identify(client.ticket, peer)
            if refusal is not None:
                self._refuse(client.listener, client.sock, refusal)
                client.ticket.release()
                return
        self._welcome(
            client.listener, client.sock, client.peer if peer is None else peer, client.ticket
        )

    def _over(self, client: PendingClient) -> None:
        self._report(client, "it took too long")
        self._drop(client)

    def _report(self, client: PendingClient, reason: str) -> None:
        line = ClientLine.of(log, logging.INFO, client.peer, "no PROXY header", reason)
        self._reporter.note(line)
