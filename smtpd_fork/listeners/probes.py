"""Probes: health checks of load balancers (``--probe-from``).

A probe connects, may read the greeting, may send EHLO and QUIT, and disconnects. It uses no
connection slot, is not counted, has no session, and is not logged. The number and the duration of
probes are limited, and any other command is answered 421.

On a listener with PROXY headers, probes and clients may come from the same address of the load
balancer. A header that names a client belongs to a client: nothing of it is read here, and the
client is treated like all others. A header that names no client (LOCAL, UNKNOWN) belongs to a
probe, and so does a connection that sends no header.
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
    MAX_V2_BYTES,
    HeaderError,
    bytes_to_read,
    is_complete,
    named_client,
    parse,
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

MAX_PROBES = 32
"""Maximum of concurrent probes: a load balancer sends one per process every few seconds."""

MAX_SECONDS = 10.0
"""Maximum duration of a probe; the default timeout of haproxy's checks is 2 s (``inter``)."""

SILENCE_SECONDS = 0.5
"""Time to wait for a PROXY header, which proxies send with the first packet."""

MAX_BYTES = 1024
"""Maximum of received bytes in total: EHLO with the longest name, NOOP and QUIT."""

_NOW = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_HELLO = frozenset({b"EHLO", b"HELO", b"LHLO"})


class _Probe(AcceptedClient, eq=False):
    """A connection of a load balancer that checks this server.

    :ivar partial_line: received data after the last line end
    :ivar received: number of received bytes
    :ivar timer: ends the probe, or the wait for a PROXY header
    """

    partial_line: bytes = b""
    received: int = 0
    timer: asyncio.TimerHandle | None = None


class Probes:
    """Answers probes without counting them.

    :param networks: client networks of probes; None: there are no probes
    :param gate: while it is paused, probes get 421
    :param ident: text of the greeting after the host name
    :ivar networks: may be set at any time
    :ivar hostname: may be set at any time
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
        self._probes: set[_Probe] = set()

    def __len__(self) -> int:
        return len(self._probes)

    def is_probe(self, peer: SocketAddress | str) -> bool:
        """Whether the address *peer* is in the networks of probes."""
        if self.networks is None:
            return False
        host = host_of(peer)
        return host is not None and bool(self.networks.find(number_of(host)))

    def begin(self, client: AcceptedClient, not_a_probe: Callable[[AcceptedClient], None]) -> None:
        """Receive a client whose address is that of probes, and own it from then on.

        :param not_a_probe: receives it if it is the client of a proxy, before anything is read
        """
        proxy = client.listener.proxy
        if len(self._probes) >= MAX_PROBES:
            if proxy:
                not_a_probe(client)
            else:
                client.reply_and_close(self._temporary_refusal("Too many probes"))
            return
        probe = _Probe(client.listener, client.sock, client.peer)
        self._probes.add(probe)
        if log.isEnabledFor(logging.DEBUG):
            address = describe(client.peer)
            log.debug("%s: a probe", address, extra={"client": address, "reason": "a probe"})
        if proxy:
            probe.timer = self._loop.call_later(SILENCE_SECONDS, self._greet, probe)
            self._loop.add_reader(client.sock, self._peek_header, probe, not_a_probe)
            self._peek_header(probe, not_a_probe)  # the header has usually arrived already
        else:
            self._greet(probe)

    def _peek_header(self, probe: _Probe, not_a_probe: Callable[[AcceptedClient], None]) -> None:
        """Check without reading it whether a PROXY header names a client."""
        try:
            peeked = probe.sock.recv(MAX_V2_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            peeked = b""
        if not peeked:
            self._end(probe)
            return
        length = _length_of_local_header(peeked, probe.peer)
        if length is None:
            self._remove(probe)
            not_a_probe(probe)
            return
        with suppress(OSError):
            if length:
                probe.sock.recv(length, _NOW)
        self._greet(probe)

    def _greet(self, probe: _Probe) -> None:
        """Send the greeting, or 421 while the gate is paused."""
        self._loop.remove_reader(probe.sock)
        if probe.timer is not None:
            probe.timer.cancel()
        if self._gate.paused:
            self._end(probe, self._temporary_refusal("Service not available"))
            return
        # Under implicit TLS the probe could not read a plaintext greeting: only the connection
        # itself shows that the server is up.
        if not probe.listener.tls and not self._send(
            probe, f"220 {self.hostname} {self._ident}\r\n".encode("ascii", "replace")
        ):
            return
        probe.timer = self._loop.call_later(MAX_SECONDS, self._end, probe)
        self._loop.add_reader(probe.sock, self._on_readable, probe)

    def _send(self, probe: _Probe, reply: bytes) -> bool:
        """Send a reply; end the probe if the socket does not take all of it at once."""
        try:
            sent = probe.sock.send(reply, _NOW)
        except OSError:
            sent = 0
        if sent < len(reply):
            self._end(probe)
        return sent == len(reply)

    def _on_readable(self, probe: _Probe) -> None:
        """Answer the commands of a probe."""
        try:
            data = probe.sock.recv(MAX_BYTES, _NOW)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or probe.listener.tls:
            self._end(probe)
            return
        probe.received += len(data)
        *lines, probe.partial_line = (probe.partial_line + data).split(b"\n")
        replies: list[bytes] = []
        for line in lines:
            word = line.partition(b" ")[0].strip().upper()
            if word == b"QUIT":
                self._end(probe, b"".join([*replies, b"221 2.0.0 Bye\r\n"]))
                return
            if word not in _HELLO and word != b"NOOP":
                self._end(
                    probe,
                    b"".join([*replies, self._temporary_refusal("Probes must not send mail")]),
                )
                return
            name = self.hostname.encode("ascii", "replace")
            replies.append(b"250 2.0.0 OK\r\n" if word == b"NOOP" else b"250 %b\r\n" % name)
        if probe.received >= MAX_BYTES:
            replies.append(self._temporary_refusal("Probe sent too much data"))
            self._end(probe, b"".join(replies))
        elif replies:
            self._send(probe, b"".join(replies))

    def _temporary_refusal(self, text: str) -> bytes:
        return reply_line(421, "4.3.2", self.hostname, f"{text}, try again later")

    def _remove(self, probe: _Probe) -> None:
        self._probes.discard(probe)
        self._loop.remove_reader(probe.sock)
        if probe.timer is not None:
            probe.timer.cancel()

    def _end(self, probe: _Probe, reply: bytes = b"") -> None:
        """Send *reply* to a probe, and close."""
        self._remove(probe)
        probe.reply_and_close(reply)

    def stop(self) -> None:
        """Answer 421 to all probes, as the server stops."""
        for probe in list(self._probes):
            self._end(probe, shutdown_reply(self.hostname))


def _length_of_local_header(peeked: bytes, peer: SocketAddress | str) -> int | None:
    """Return the length of a PROXY header that names no other client than *peer*; 0 for no header.

    The result is None if the header names a client, is incomplete, or is malformed: then the
    connection is treated as that of a client.
    """
    try:
        header = peeked[: bytes_to_read(b"", peeked)]
    except HeaderError:
        return 0
    if not is_complete(header):
        return None
    try:
        behind = named_client(parse(header))
    except HeaderError:
        return None
    # Version 1 has no LOCAL command: there haproxy's checks name haproxy itself as the client.
    return len(header) if behind is None or host_of(behind) == host_of(peer) else None
