"""Proxy: the header that a proxy sends first, which tells whom it speaks for (PROXY v1 and v2).

The header is read from the raw socket, and not one byte more: what follows it is the client's,
perhaps a TLS handshake. aiosmtpd's parser makes sense of it; where it ends is found here.
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

from aiosmtpd.proxy_protocol import AF, V2_CMD, V2_SIGNATURE, ProxyData, get_proxy

from smtpd_fork.listeners.holding import Held, Holding
from smtpd_fork.net import describe, source_key

if TYPE_CHECKING:
    import asyncio

    from smtpd_fork.gate import Gate
    from smtpd_fork.listeners.holding import Refuse, Welcome
    from smtpd_fork.net import SocketAddress

__all__ = ["HeaderError", "ProxyHeaders", "missing", "parse"]

log = logging.getLogger("smtpd_fork.listeners")

LONGEST_V1 = 107
"""Bytes of a v1 header with its CR LF; the specification's figure."""

LONGEST_V2 = 4096
"""Bytes of a v2 header; it may have 65,551, and TLVs of that size are nobody's."""

V1 = b"PROXY "
V2_FIXED = 16
"""Bytes of a v2 header before its addresses: signature, version, family, length."""


class HeaderError(ValueError):
    """What was sent is no PROXY header."""


def missing(header: bytes, peeked: bytes) -> int:
    """Return how many bytes of *peeked* belong to the header that has begun with *header*.

    :raises HeaderError: it cannot become one, or is too long
    """
    seen = header + peeked
    for start, fixed in ((V1, len(V1)), (V2_SIGNATURE, V2_FIXED)):
        if seen[:fixed].startswith(start[: len(seen)]):
            break
    else:
        raise HeaderError("this is no PROXY header")
    if seen.startswith(V1):
        end = seen.find(b"\r\n", 0, LONGEST_V1)
        length = end + 2 if end >= 0 else len(seen) + 1
        longest = LONGEST_V1
    else:
        length = V2_FIXED
        if len(seen) >= V2_FIXED:
            length += int.from_bytes(seen[V2_FIXED - 2 : V2_FIXED])
        longest = LONGEST_V2
    if length > longest:
        raise HeaderError("the PROXY header is too long")
    return min(len(peeked), length - len(header))


def is_whole(header: bytes) -> bool:
    """Whether *header*, which :func:`missing` has measured, is complete."""
    if header.startswith(V1):
        return header.endswith(b"\r\n")
    return len(header) >= V2_FIXED and len(header) == V2_FIXED + int.from_bytes(
        header[V2_FIXED - 2 : V2_FIXED]
    )


class _Reader:
    """A whole header, as aiosmtpd's parser reads it: it never has to wait."""

    def __init__(self, header: bytes) -> None:
        self._rest = header

    async def read(self, count: int = -1) -> bytes:
        end = len(self._rest) if count < 0 else count
        taken, self._rest = self._rest[:end], self._rest[end:]
        return taken

    async def readexactly(self, count: int) -> bytes:
        if count > len(self._rest):
            raise HeaderError("truncated")
        return await self.read(count)

    async def readuntil(self, until: bytes | None = None) -> bytes:
        mark = b"\n" if until is None else until
        end = self._rest.find(mark)
        if end < 0:
            raise HeaderError("truncated")
        return await self.read(end + len(mark))


def parse(header: bytes) -> ProxyData:
    """Return what a whole header says.

    :raises HeaderError: it is malformed
    """
    parsing = get_proxy(_Reader(header))
    try:
        parsing.send(None)
    except StopIteration as end:
        data: ProxyData = end.value
        if not data.valid:
            raise HeaderError(data.error or "malformed") from None
        return data
    parsing.close()
    raise HeaderError("truncated")


def true_peer(data: ProxyData) -> SocketAddress | str | None:
    """Return whom a header speaks for; None if it says nobody: a health check, or unknown."""
    if data.command == V2_CMD.LOCAL or data.src_addr is None:
        return None
    if data.family in {AF.INET, AF.INET6}:
        return (str(data.src_addr), int(data.src_port or 0))
    return ""  # a unix socket's client


class ProxyHeaders(Holding):
    """Holds connections of proxies until their headers have come.

    :param seconds: how long a header may take
    :param gate: judges whom a header speaks for
    :param welcome: takes who may come in: listener, socket, true peer, ticket
    :param refuse: answers who may not, and closes
    """

    def __init__(
        self,
        seconds: float,
        loop: asyncio.AbstractEventLoop,
        gate: Gate,
        *,
        welcome: Welcome,
        refuse: Refuse,
    ) -> None:
        super().__init__("proxy-header", seconds, loop)
        self._gate = gate
        self._welcome = welcome
        self._refuse = refuse

    def _heard(self, held: Held) -> None:
        try:
            if not self._read(held):
                return
            data = parse(held.header)
        except (HeaderError, OSError) as error:
            self._let_go(held)
            _tell(held, str(error))
            self._drop(held)
            return
        self._let_go(held)
        self._identify(held, data)

    def _read(self, held: Held) -> bool:
        """Read what has come of a header; return whether it is whole.

        :raises HeaderError: it is none, or the proxy has gone
        """
        while not is_whole(held.header):
            try:
                peeked = held.sock.recv(LONGEST_V2, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            if not peeked:
                raise HeaderError("the connection was closed")
            # Taken from the socket at once: a loop would go on reporting what was only looked at.
            held.header += held.sock.recv(missing(held.header, peeked))
        return True

    def _identify(self, held: Held, data: ProxyData) -> None:
        peer = true_peer(data)
        held.ticket.proxy = data
        held.ticket.sender = held.peer
        if peer is not None and source_key(peer) == source_key(held.peer):
            peer = None  # it speaks for itself: a health check, as v1 has no word for one
        if peer is not None:
            refusal = self._gate.identify(held.ticket, peer)
            if refusal is not None:
                self._refuse(held.listener, held.sock, refusal)
                held.ticket.release()
                return
        self._welcome(held.listener, held.sock, held.peer if peer is None else peer, held.ticket)

    def _over(self, held: Held) -> None:
        _tell(held, "it took too long")
        self._drop(held)


def _tell(held: Held, reason: str) -> None:
    client = describe(held.peer)
    about = {"client": client, "reason": reason}
    log.info("%s: no PROXY header: %s", client, reason, extra=about)
