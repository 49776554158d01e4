"""Probes: health checks of load balancers (``--probe-from``).

A probe connects, perhaps reads the greeting, perhaps says EHLO and QUIT, and goes. It takes no
connection slot, is in no count, is no session, and leaves no line in the log. There are limits of
probes at once, and of time, and whatever looks like mail is answered 421.

Where a PROXY header comes first, the load balancer may send both from one address. A header that
speaks for somebody is a client's, and goes the way of all clients, untouched. One that speaks for
nobody (LOCAL, UNKNOWN) is a probe's, and so is silence.
"""

from __future__ import annotations

import logging
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from smtpd_fork.gate.networks import number_of
from smtpd_fork.gate.verdict import reply_line, shutdown_reply
from smtpd_fork.listeners.accepted_client import AcceptedClient
from smtpd_fork.listeners.proxy_header import (
    LONGEST_V2,
    HeaderError,
    is_whole,
    missing,
    parse,
    true_peer,
)
from smtpd_fork.peer_address import describe, host_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from smtpd_fork.gate import Gate
    from smtpd_fork.gate.rules import NetworkList
    from smtpd_fork.peer_address import SocketAddress

__all__ = ["Probes"]

log = logging.getLogger("smtpd_fork.listeners")

MOST = 32
"""Probes at once: a load balancer has one for each of its own processes, every few seconds."""

LONGEST_SECONDS = 10.0
"""How long one may last; haproxy gives its own checks 2 s by default (``inter``)."""

SILENCE_SECONDS = 0.5
"""A client that has sent no PROXY header by then sends none: it comes with the first packet."""

MOST_BYTES = 1024
"""What one may say in all: EHLO with the longest name, NOOP and QUIT."""

_NOW = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_HELLO = frozenset({b"EHLO", b"HELO", b"LHLO"})


class _Probe(AcceptedClient, eq=False):
    """One probe."""

    said: bytes = b""
    size: int = 0
    timer: asyncio.TimerHandle | None = None


class Probes:
    """Answers probes, outside of every count.

    :param networks: where they come from; None: there are none
    :param gate: while it is paused they get 421
    :param ident: what the greeting says behind the host's name
    :ivar networks: may be set at any time
    :ivar hostname: the same
    """

    def __init__(
        self,
        networks: NetworkList | None,
        loop: asyncio.AbstractEventLoop,
        gate: Gate,
        *,
        hostname: str,
        ident: str,
    ) -> None:
        self.networks = networks
        self._loop = loop
        self._gate = gate
        self.hostname = hostname
        self._ident = ident
        self._all: set[_Probe] = set()

    def __len__(self) -> int:
        return len(self._all)

    def expect(self, peer: SocketAddress | str) -> bool:
        """Whether *peer* is where probes come from."""
        if self.networks is None:
            return False
        host = host_of(peer)
        return host is not None and bool(self.networks.find(number_of(host)))

    def begin(self, client: AcceptedClient, otherwise: Callable[[AcceptedClient], None]) -> None:
        """Take one that comes from where probes come from; it is no longer the caller's.

        :param otherwise: takes what turns out to be a proxy's client: nothing of it has been read
        """
        proxy = client.listener.proxy
        if len(self._all) >= MOST:
            if proxy:
                otherwise(client)
            else:
                client.dismiss(self._sorry("Too many probes"))
            return
        probe = _Probe(client.listener, client.sock, client.peer)
        self._all.add(probe)
        if log.isEnabledFor(logging.DEBUG):
            address = describe(client.peer)
            log.debug("%s: a probe", address, extra={"client": address, "reason": "a probe"})
        if proxy:
            probe.timer = self._loop.call_later(SILENCE_SECONDS, self._greet, probe)
            self._loop.add_reader(client.sock, self._look, probe, otherwise)
            self._look(probe, otherwise)  # mostly the header is there
        else:
            self._greet(probe)

    def _look(self, probe: _Probe, otherwise: Callable[[AcceptedClient], None]) -> None:
        """See whether a PROXY header speaks for somebody, without reading it."""
        try:
            peeked = probe.sock.recv(LONGEST_V2, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            peeked = b""
        if not peeked:
            self._end(probe)
            return
        length = _header_for_nobody(peeked, probe.peer)
        if length is None:
            self._forget(probe)
            otherwise(probe)
            return
        with suppress(OSError):
            if length:
                probe.sock.recv(length, _NOW)
        self._greet(probe)

    def _greet(self, probe: _Probe) -> None:
        """Tell a probe that all is well, or that it is not."""
        self._loop.remove_reader(probe.sock)
        if probe.timer is not None:
            probe.timer.cancel()
        if self._gate.paused:
            self._end(probe, self._sorry("Service not available"))
            return
        # Under implicit TLS a greeting in plaintext cannot be read: the connection alone has to do.
        if not probe.listener.tls and not self._say(
            probe, f"220 {self.hostname} {self._ident}\r\n".encode("ascii", "replace")
        ):
            return
        probe.timer = self._loop.call_later(LONGEST_SECONDS, self._end, probe)
        self._loop.add_reader(probe.sock, self._hear, probe)

    def _say(self, probe: _Probe, reply: bytes) -> bool:
        """Send a reply; one that cannot be taken at once ends the probe."""
        try:
            sent = probe.sock.send(reply, _NOW)
        except OSError:
            sent = 0
        if sent < len(reply):
            self._end(probe)
        return sent == len(reply)

    def _hear(self, probe: _Probe) -> None:
        """Answer what a probe says."""
        try:
            data = probe.sock.recv(MOST_BYTES, _NOW)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or probe.listener.tls:
            self._end(probe)
            return
        probe.size += len(data)
        *lines, probe.said = (probe.said + data).split(b"\n")
        replies: list[bytes] = []
        for line in lines:
            word = line.partition(b" ")[0].strip().upper()
            if word == b"QUIT":
                self._end(probe, b"".join([*replies, b"221 2.0.0 Bye\r\n"]))
                return
            if word not in _HELLO and word != b"NOOP":
                self._end(probe, b"".join([*replies, self._sorry("Probes are not to send mail")]))
                return
            name = self.hostname.encode("ascii", "replace")
            replies.append(b"250 2.0.0 OK\r\n" if word == b"NOOP" else b"250 %b\r\n" % name)
        if probe.size >= MOST_BYTES:
            replies.append(self._sorry("Probes are not to talk so much"))
            self._end(probe, b"".join(replies))
        elif replies:
            self._say(probe, b"".join(replies))

    def _sorry(self, text: str) -> bytes:
        return reply_line(421, "4.3.2", self.hostname, f"{text}, try again later")

    def _forget(self, probe: _Probe) -> None:
        self._all.discard(probe)
        self._loop.remove_reader(probe.sock)
        if probe.timer is not None:
            probe.timer.cancel()

    def _end(self, probe: _Probe, reply: bytes = b"") -> None:
        """Close on a probe, after *reply*."""
        self._forget(probe)
        probe.dismiss(reply)

    def stop(self) -> None:
        """Answer 421 to all of them: the server stops."""
        for probe in list(self._all):
            self._end(probe, shutdown_reply(self.hostname))


def _header_for_nobody(peeked: bytes, peer: SocketAddress | str) -> int | None:
    """Return how long a PROXY header is that speaks for nobody but *peer*, 0 without a header.

    None: it speaks for somebody, is not whole, or malformed; a client's way is the right one then.
    """
    try:
        header = peeked[: missing(b"", peeked)]
    except HeaderError:
        return 0
    if not is_whole(header):
        return None
    try:
        behind = true_peer(parse(header))
    except HeaderError:
        return None
    # v1 has no word for it: haproxy's checks name themselves there.
    return len(header) if behind is None or host_of(behind) == host_of(peer) else None
