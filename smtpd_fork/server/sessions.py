"""Sessions: every connection from ticket to close, and the one place where tickets go back.

A connection is counted here from the moment the acceptor hands it over. It ends in
:meth:`Sessions._ended`, and only there:

- the session says so, by its ``on_close`` (a connection that was made is always lost once);
- the loop could not make a session of it: a TLS handshake failed, or its task was cancelled,
  perhaps before it ever ran.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable

    from smtpd_fork.gate import Ticket
    from smtpd_fork.listeners import Listener
    from smtpd_fork.net import SocketAddress
    from smtpd_fork.smtp import SMTP

    MakeSession = Callable[[Listener, SocketAddress | str, Callable[[SMTP], None]], SMTP]

__all__ = ["Sessions"]

log = logging.getLogger("smtpd_fork.server")

CUT_SECONDS = 1.0
"""How long connections that were cut may take to say that they are closed."""


class _Connecting:
    """A socket on its way to becoming a session."""

    __slots__ = ("begun", "protocol", "sock", "tls")

    def __init__(self, protocol: SMTP, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        self.protocol = protocol
        self.sock = sock
        self.tls = tls
        self.begun = False

    def begin(self) -> SMTP:
        """Return the protocol; from here on the socket is the loop's."""
        self.begun = True
        return self.protocol


class Sessions:
    """The live connections of one server.

    :param make: makes the session of a client: listener, peer, what to call at its end
    :param tls: for listeners that speak TLS from the first byte
    :param handshake_seconds: for their handshakes
    """

    def __init__(
        self, make: MakeSession, tls: ssl.SSLContext | None, handshake_seconds: float
    ) -> None:
        self._make = make
        self._tls = tls
        self._handshake_seconds = handshake_seconds
        self._tickets: dict[SMTP, Ticket] = {}
        self._connecting: dict[asyncio.Task[object], _Connecting] = {}
        self._finishing: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._hurried = False

    def __len__(self) -> int:
        return len(self._tickets)

    # -- beginning -----------------------------------------------------------------------------

    def welcome(
        self, listener: Listener, sock: socket.socket, peer: SocketAddress | str, ticket: Ticket
    ) -> None:
        """Make a session of an accepted socket; takes over socket and ticket."""
        try:
            protocol = self._make(listener, peer, self._ended)
        except BaseException:
            ticket.release()
            sock.close()
            raise
        self._tickets[protocol] = ticket
        connecting = _Connecting(protocol, sock, self._tls if listener.tls else None)
        loop = asyncio.get_running_loop()
        task = loop.create_task(
            loop.connect_accepted_socket(
                connecting.begin,
                sock,
                ssl=connecting.tls,
                ssl_handshake_timeout=self._handshake_seconds if connecting.tls else None,
            )
        )
        self._connecting[task] = connecting
        task.add_done_callback(self._connected)

    def _connected(self, task: asyncio.Task[object]) -> None:
        """See what became of a connection; not in a `finally`: the task may never have run."""
        connecting = self._connecting.pop(task)
        error = None if task.cancelled() else task.exception()
        if error is None and not task.cancelled():
            return
        protocol = connecting.protocol
        if not connecting.begun:
            connecting.sock.close()  # else it is the loop's, which closes it
        if not protocol.began:
            log.info("%s: no session: %s", protocol, error or "the server stops")
            self._ended(protocol)
        else:
            protocol.abort()  # and its on_close comes

    def _ended(self, protocol: SMTP) -> None:
        """Take a session out of the count."""
        ticket = self._tickets.pop(protocol, None)
        if ticket is None:
            return
        ticket.release()
        self._await_task(protocol)
        self._changed.set()

    def _await_task(self, protocol: SMTP) -> None:
        """Know of what still runs: a handler with a message in hand, or handle_DISCONNECT."""
        task = protocol.task
        if task is not None:
            self._finishing.add(task)
            task.add_done_callback(partial(self._finished, protocol))

    def _finished(self, protocol: SMTP, task: asyncio.Task[None]) -> None:
        self._finishing.discard(task)
        self._await_task(protocol)  # the one may be followed by the other
        self._changed.set()

    # -- ending --------------------------------------------------------------------------------

    async def drain(self, seconds: float) -> int:
        """End every session in order; after *seconds*, or :meth:`hurry`, cut those that are left.

        :returns: how many were cut
        """
        cut = 0
        try:
            for task, connecting in list(self._connecting.items()):
                if connecting.tls is not None:
                    task.cancel()
            for protocol in list(self._tickets):
                protocol.shut_down()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wait_until_ended()
        finally:
            cut = len(self._tickets)
            await self._cut()
        return cut

    def hurry(self) -> None:
        """Have :meth:`drain` wait no longer."""
        self._hurried = True
        self._changed.set()

    async def _wait_until_ended(self) -> None:
        while (self._tickets or self._finishing) and not self._hurried:
            self._changed.clear()
            await self._changed.wait()

    async def _cut(self) -> None:
        """Close what is open, cancel what runs, and see it end."""
        for task in list(self._connecting):
            task.cancel()
        for protocol in list(self._tickets):
            protocol.cut()
        for finishing in list(self._finishing):
            finishing.cancel()
        self._hurried = False
        with suppress(TimeoutError):
            async with asyncio.timeout(CUT_SECONDS):
                await self._wait_until_ended()
        self.abandon()

    def abandon(self) -> None:
        """Release the tickets that are left: the loop is ending, nobody else will."""
        for protocol in list(self._tickets):
            log.error("%s did not end, its place is given back", protocol)
            self._ended(protocol)
