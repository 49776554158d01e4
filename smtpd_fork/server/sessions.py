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

from smtpd_fork.dialogue.client_log import summary
from smtpd_fork.errors import describe_error, forget_frames
from smtpd_fork.gate import ClientLine
from smtpd_fork.server.handshake import Handshake
from smtpd_fork.smtp.socket_poll import SocketPoll
from smtpd_fork.smtp.socket_transport import SocketTransport

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Collection

    from smtpd_fork.dialogue import CurrentTls
    from smtpd_fork.gate import Refusal, Reporter, Ticket
    from smtpd_fork.listeners import Listener, Refuser
    from smtpd_fork.listeners.accepted_client import AcceptedClient
    from smtpd_fork.peer_address import Peer, SocketAddress
    from smtpd_fork.server.stress import Stress
    from smtpd_fork.smtp import Connection

    MakeSession = Callable[
        [Listener, SocketAddress | str, Callable[[Connection], None]], Connection
    ]

__all__ = ["Sessions"]

log = logging.getLogger("smtpd_fork.server")
listeners_log = logging.getLogger("smtpd_fork.listeners")  # of clients that have no session yet

CUT_SECONDS = 1.0
"""How long connections that were cut may take to say that they are closed."""


class Sessions:
    """The live connections of one server.

    :param make: makes the session of a client: listener, peer, what to call at its end
    :param tls: for listeners with implicit TLS
    :param handshake_seconds: for their handshakes
    :param loop: the sessions' own
    :param refuser: knows whose handshakes fail too often
    :param reporter: writes lines about clients
    :param mark: is called with each session that begins; it may slow the client down
    :ivar stress: knows whether slots are short
    :ivar judge: judges a client that XCLIENT names; set before the first session
    """

    judge: Callable[..., Awaitable[Refusal | None]]

    def __init__(
        self,
        make: MakeSession,
        tls: CurrentTls | None,
        handshake_seconds: float,
        loop: asyncio.AbstractEventLoop,
        refuser: Refuser,
        reporter: Reporter,
        stress: Stress,
        mark: Callable[[Connection, Ticket], None],
    ) -> None:
        self._loop = loop
        self._refuser = refuser
        self._reporter = reporter
        self.stress = stress
        self._mark_if_suspected = mark
        self.change(make, tls, handshake_seconds)
        self._tickets: dict[Connection, Ticket] = {}
        self._handshakes: dict[asyncio.Task[object], Handshake] = {}
        self._finishing: dict[asyncio.Task[None], Connection] = {}
        self._changed = asyncio.Event()
        self._hurried = False
        self._poll: SocketPoll | None = None

    def __contains__(self, holder: object) -> bool:
        return holder in self._tickets

    def __len__(self) -> int:
        return len(self._tickets)

    def all(self) -> list[tuple[Connection, Ticket]]:
        """Return the sessions, and their tickets."""
        return list(self._tickets.items())

    def change(self, make: MakeSession, tls: CurrentTls | None, handshake_seconds: float) -> None:
        """Make the next sessions otherwise; see the class."""
        self._make = make
        self._tls = tls
        self._handshake_seconds = handshake_seconds

    # -- beginning -----------------------------------------------------------------------------

    def begin(self, client: AcceptedClient, ticket: Ticket) -> None:
        """Begin the session of a client, which owns its socket and its ticket."""
        listener = client.listener
        if listener.tls and (refusal := self._refuser.begin_handshake(ticket)) is not None:
            client.reply_and_close(refusal.reply(self._refuser.hostname))
            ticket.release()
            return
        try:
            connection = self._make(listener, client.peer, self._ended)
        except BaseException as error:  # a subclass's constructor may raise anything
            ticket.release()
            client.sock.close()
            if not isinstance(error, Exception):
                raise
            self._not_begun(client, error)
            return
        if ticket.holder is not None:  # a stage, which may have learned of the client
            connection.proxied, connection.host_name_dns = ticket.proxy, ticket.host_name_dns
        if ticket.id is None:
            ticket.id = connection.id
        else:
            connection.dialogue.id = ticket.id
        ticket.holder = connection
        ticket.listener = listener
        self._tickets[connection] = ticket
        self.mark(connection)
        connection.owner = self
        if listener.tls:
            self._shake_hands(Handshake(connection, client.sock))
        else:
            self._connect(connection, client.sock)

    def _not_begun(self, client: AcceptedClient, error: Exception) -> None:
        what = "a session could not be begun"
        line = ClientLine.of(listeners_log, logging.ERROR, client.peer, what, summary(error))
        self._reporter.note(line, error=error)

    def begin_handshake(self, connection: Connection) -> Refusal | None:
        """Return why a session is not to begin a TLS handshake; it has been noted."""
        ticket = self._tickets.get(connection)
        return None if ticket is None else self._refuser.begin_handshake(ticket)

    def end_handshake(self, connection: Connection) -> None:
        """Take note that a session's handshake has succeeded."""
        ticket = self._tickets.get(connection)
        if ticket is not None:
            self._refuser.end_handshake(ticket)

    def mark(self, connection: Connection) -> None:
        """Slow down the client of a session, if the gate suspects it."""
        ticket = self._tickets.get(connection)
        if ticket is not None:
            self._mark_if_suspected(connection, ticket)

    async def identify(
        self, connection: Connection, peer: Peer, *, look_up: bool
    ) -> Refusal | None:
        """Have *peer* take the place of a session's client; return why it may not, once noted."""
        ticket = self._tickets.get(connection)
        if ticket is None:
            return None  # it has ended
        ticket.sender = ticket.sender or connection.peer
        refusal = await self.judge(ticket, peer, look_up=look_up)
        connection.host_name_dns = ticket.host_name_dns
        return refusal and self._refuser.note(refusal, peer, ticket.name())

    def _connect(self, connection: Connection, sock: socket.socket) -> None:
        """Begin a session on a plain socket."""
        try:
            poll = self._poll = self._poll or SocketPoll.of(self._loop)
        except OSError as error:  # no descriptor is free
            sock.close()
            self._not_connected(connection, error)
        else:
            SocketTransport(poll, sock).begin(connection.protocol)

    def _shake_hands(self, handshake: Handshake) -> None:
        """Have the loop speak TLS on a socket, and then begin the session."""
        task = self._loop.create_task(
            self._loop.connect_accepted_socket(
                handshake.begin,
                handshake.sock,
                ssl=self._tls.context if self._tls is not None else None,
                ssl_handshake_timeout=self.stress.shorten(self._handshake_seconds),
            )
        )
        self._handshakes[task] = handshake
        task.add_done_callback(self._shook_hands)

    def _shook_hands(self, task: asyncio.Task[object]) -> None:
        """See what became of a handshake; not in a `finally`: the task may never have run."""
        handshake = self._handshakes.pop(task)
        if task.cancelled():
            reason = "kicked" if handshake.connection.kicked else "the server stops"
            self._failed(handshake, reason)
        elif (error := task.exception()) is not None:
            handshake.connection.shared.tally.tls_failed += 1
            self._failed(handshake, error)
            forget_frames(error)

    def _failed(self, handshake: Handshake, reason: BaseException | str) -> None:
        if not handshake.begun:
            handshake.sock.close()  # else it is the loop's, which closes it
        self._not_connected(handshake.connection, reason, what="TLS handshake failed")

    def _not_connected(
        self, connection: Connection, reason: BaseException | str, *, what: str = "no session"
    ) -> None:
        if connection.began:
            connection.abort()  # and its on_close comes
        else:
            text, kind = describe_error(reason), type(reason).__name__
            connection.dialogue.report(logging.INFO, what, text, kind=kind)
            connection.connection_lost(None)  # and its on_close comes

    def _ended(self, connection: Connection) -> None:
        """Take a session out of the count."""
        ticket = self._tickets.pop(connection, None)
        if ticket is None:
            return
        ticket.release()
        if connection.work is not None:
            self._await_task(connection)
        self._changed.set()

    def _await_task(self, connection: Connection) -> None:
        """Know of what still runs: a handler with a message in hand, or handle_DISCONNECT."""
        task = connection.task
        if task is not None:
            self._finishing[task] = connection
            task.add_done_callback(partial(self._finished, connection))

    def _finished(self, connection: Connection, task: asyncio.Task[None]) -> None:
        self._finishing.pop(task, None)
        if connection.task is not task:  # it is, if it was cancelled before it began
            self._await_task(connection)  # the one may be followed by the other
        self._changed.set()

    def audit(self, held: Collection[Ticket]) -> list[str]:
        """Return what is wrong between tickets, sessions and transports; it should be nothing."""
        wrong = []
        for connection, ticket in self._tickets.items():
            transport = connection.transport
            if ticket.released or ticket not in held:
                wrong.append(f"{connection} is here, and its ticket is released")
            elif connection.began and transport is None:
                wrong.append(f"{connection} has no connection any more, and a ticket")
            elif ticket.holder is not connection:
                wrong.append(f"{connection} has somebody else's ticket")
        return wrong

    # -- ending --------------------------------------------------------------------------------

    def kick(self, holders: Collection[object], reply: bytes) -> None:
        """End those of the sessions that are among *holders*, with *reply* as the last word.

        A client in the middle of its handshake gets no reply.
        """
        for task, handshake in list(self._handshakes.items()):
            if handshake.connection in holders:
                handshake.connection.kick(reply)
                task.cancel()
        for connection in holders:
            if connection in self._tickets:
                connection.kick(reply)

    async def drained(self) -> None:
        """Wait until the last session has ended, by itself."""
        while self._tickets or self._finishing:
            await self._change()

    async def drain(self, seconds: float) -> int:
        """End every session in order; after *seconds*, or :meth:`hurry`, cut those that are left.

        :returns: how many were cut
        """
        cut = 0
        try:
            for task in list(self._handshakes):
                task.cancel()
            for connection in list(self._tickets):
                connection.shut_down()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wait_until_ended()
        finally:
            cut = len(self._tickets)
            await self._cut()
        return cut

    async def outlived(self, handler: object) -> None:
        """Wait until no session has *handler*, which new ones do not get any more."""
        left = {connection for connection in self._tickets if connection.shared.handler is handler}
        while left:
            connection = next(iter(left))
            if connection in self._tickets:
                await self._change()
            else:
                left.discard(connection)
        while any(connection.shared.handler is handler for connection in self._finishing.values()):
            await self._change()

    async def _change(self) -> None:
        """Wait until a session has ended, or what it left behind."""
        self._changed.clear()
        await self._changed.wait()

    def hurry(self) -> None:
        """Have :meth:`drain` wait no longer."""
        self._hurried = True
        self._changed.set()

    async def _wait_until_ended(self) -> None:
        while (self._tickets or self._finishing) and not self._hurried:
            await self._change()

    async def _cut(self) -> None:
        """Close what is open, cancel what runs, and see it end."""
        for task in list(self._handshakes):
            task.cancel()
        for connection in list(self._tickets):
            connection.cut()
        for finishing in list(self._finishing):
            finishing.cancel()
        self._hurried = False
        with suppress(TimeoutError):
            async with asyncio.timeout(CUT_SECONDS):
                await self._wait_until_ended()
        self.abandon()

    def abandon(self) -> None:
        """Release the tickets that are left: the loop is ending, nobody else will."""
        for connection in list(self._tickets):
            what = "the session did not end, its connection slot is released"
            connection.dialogue.report(logging.ERROR, what)
            self._ended(connection)
        if self._poll is not None:
            self._poll.close()
            self._poll = None
