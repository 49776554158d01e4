"""Sessions: all connections of a server, from the start of a session to its end.

A session is counted here from :meth:`Sessions.begin` on. It ends in :meth:`Sessions._ended`, the
only method that releases the ticket of a session. The connection calls it by its ``on_close``:

- when the connection is closed (for each ``connection_made`` there is one ``connection_lost``);
- when the event loop could not begin a session: a TLS handshake failed, or its task was cancelled,
  perhaps before it ran.
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
listeners_log = logging.getLogger("smtpd_fork.listeners")  # for clients that have no session yet

CUT_SECONDS = 1.0
"""Time limit for connections that were cut to call ``on_close``."""


class Sessions:
    """The live connections of one server.

    :param make: creates a session; its arguments are the listener, the peer, and ``on_close``
    :param tls: for listeners with implicit TLS
    :param handshake_seconds: time limit for a handshake of implicit TLS
    :param loop: the event loop of the sessions
    :param refuser: refuses clients whose handshakes fail too often
    :param reporter: writes log lines about clients
    :param mark: called with each new session; it may slow the client down
    :ivar stress: shortens time limits while few slots are free
    :ivar judge: evaluates a client that XCLIENT names; must be set before the first session
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
        self._mark = mark
        self.change(make, tls, handshake_seconds)
        self._tickets: dict[Connection, Ticket] = {}
        self._handshakes: dict[asyncio.Task[object], Handshake] = {}
        self._finishing: dict[asyncio.Task[None], Connection] = {}
        self._changed = asyncio.Event()
        self._grace_ended = False
        self._poll: SocketPoll | None = None

    def __contains__(self, holder: object) -> bool:
        return holder in self._tickets

    def __len__(self) -> int:
        return len(self._tickets)

    def all(self) -> list[tuple[Connection, Ticket]]:
        """Return all sessions with their tickets."""
        return list(self._tickets.items())

    def change(self, make: MakeSession, tls: CurrentTls | None, handshake_seconds: float) -> None:
        """Change the settings of new sessions; the class describes the parameters."""
        self._make = make
        self._tls = tls
        self._handshake_seconds = handshake_seconds

    # -- beginning -----------------------------------------------------------------------------

    def begin(self, client: AcceptedClient, ticket: Ticket) -> None:
        """Begin the session of a client, and own its socket and its ticket from then on."""
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
        if ticket.holder is not None:  # a stage before the session may have added data
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
            self._start_handshake(Handshake(connection, client.sock))
        else:
            self._connect(connection, client.sock)

    def _not_begun(self, client: AcceptedClient, error: Exception) -> None:
        what = "cannot begin a session"
        line = ClientLine.of(listeners_log, logging.ERROR, client.peer, what, summary(error))
        self._reporter.note(line, error=error)

    def begin_handshake(self, connection: Connection) -> Refusal | None:
        """Return None if a session may begin a TLS handshake, else a counted and logged refusal."""
        ticket = self._tickets.get(connection)
        return None if ticket is None else self._refuser.begin_handshake(ticket)

    def end_handshake(self, connection: Connection) -> None:
        """Report a successful TLS handshake of a session to the gate."""
        ticket = self._tickets.get(connection)
        if ticket is not None:
            self._refuser.end_handshake(ticket)

    def mark(self, connection: Connection) -> None:
        """Slow down the client of a session if the tarpit applies to it."""
        ticket = self._tickets.get(connection)
        if ticket is not None:
            self._mark(connection, ticket)

    async def identify(
        self, connection: Connection, peer: Peer, *, look_up: bool
    ) -> Refusal | None:
        """Replace the client of a session by *peer*; return None, or a counted and logged refusal.

        :param look_up: whether to query the name of *peer*, if that is configured
        """
        ticket = self._tickets.get(connection)
        if ticket is None:
            return None  # the session has ended
        ticket.sender = ticket.sender or connection.peer
        refusal = await self.judge(ticket, peer, look_up=look_up)
        connection.host_name_dns = ticket.host_name_dns
        return refusal and self._refuser.note(refusal, peer, ticket.name())

    def _connect(self, connection: Connection, sock: socket.socket) -> None:
        """Begin a session without TLS on a socket."""
        try:
            poll = self._poll = self._poll or SocketPoll.of(self._loop)
        except OSError as error:  # no descriptor is free
            sock.close()
            self._not_connected(connection, error)
        else:
            SocketTransport(poll, sock).begin(connection.protocol)

    def _start_handshake(self, handshake: Handshake) -> None:
        """Start the TLS handshake on a socket; the session begins when it has succeeded."""
        task = self._loop.create_task(
            self._loop.connect_accepted_socket(
                handshake.begin,
                handshake.sock,
                ssl=self._tls.context if self._tls is not None else None,
                ssl_handshake_timeout=self.stress.shorten(self._handshake_seconds),
            )
        )
        self._handshakes[task] = handshake
        task.add_done_callback(self._on_handshake_done)

    def _on_handshake_done(self, task: asyncio.Task[object]) -> None:
        """Handle the end of a handshake; a ``finally`` would not run in a task that never began."""
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
            handshake.sock.close()  # otherwise the event loop owns the socket, and closes it
        self._not_connected(handshake.connection, reason, what="TLS handshake failed")

    def _not_connected(
        self, connection: Connection, reason: BaseException | str, *, what: str = "no session"
    ) -> None:
        if connection.began:
            connection.abort()  # this calls on_close
        else:
            text, kind = describe_error(reason), type(reason).__name__
            connection.dialogue.report(logging.INFO, what, text, kind=kind)
            connection.connection_lost(None)  # this calls on_close

    def _ended(self, connection: Connection) -> None:
        """Remove a session, and release its ticket."""
        ticket = self._tickets.pop(connection, None)
        if ticket is None:
            return
        ticket.release()
        if connection.work is not None:
            self._track_task(connection)
        self._changed.set()

    def _track_task(self, connection: Connection) -> None:
        """Keep track of a running task: the handler of a message, or handle_DISCONNECT."""
        task = connection.task
        if task is not None:
            self._finishing[task] = connection
            task.add_done_callback(partial(self._on_task_done, connection))

    def _on_task_done(self, connection: Connection, task: asyncio.Task[None]) -> None:
        self._finishing.pop(task, None)
        if connection.task is not task:  # the same task if it was cancelled before it ran
            self._track_task(connection)  # handle_DISCONNECT may follow the handler of a message
        self._changed.set()

    def audit(self, held: Collection[Ticket]) -> list[str]:
        """Return inconsistencies of tickets, sessions and transports; there should be none."""
        wrong = []
        for connection, ticket in self._tickets.items():
            transport = connection.transport
            if ticket.released or ticket not in held:
                wrong.append(f"{connection} is a session, but its ticket is released")
            elif connection.began and transport is None:
                wrong.append(f"{connection} is closed, but still has a ticket")
            elif ticket.holder is not connection:
                wrong.append(f"{connection} is not the holder of its ticket")
        return wrong

    # -- ending --------------------------------------------------------------------------------

    def kick(self, holders: Collection[object], reply: bytes) -> None:
        """End the sessions that are in *holders*, after sending *reply*.

        A client in a TLS handshake gets no reply.
        """
        for task, handshake in list(self._handshakes.items()):
            if handshake.connection in holders:
                handshake.connection.kick(reply)
                task.cancel()
        for connection in holders:
            if connection in self._tickets:
                connection.kick(reply)

    async def drained(self) -> None:
        """Wait until all sessions have ended by themselves."""
        while self._tickets or self._finishing:
            await self._wait_for_change()

    async def drain(self, seconds: float) -> int:
        """End all sessions; after *seconds* or :meth:`end_grace_period`, cut the remaining ones.

        :returns: number of sessions that were cut
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

    async def wait_until_unused(self, handler: object) -> None:
        """Wait until no session uses *handler*; new sessions must not use it any more."""
        left = {connection for connection in self._tickets if connection.shared.handler is handler}
        while left:
            connection = next(iter(left))
            if connection in self._tickets:
                await self._wait_for_change()
            else:
                left.discard(connection)
        while any(connection.shared.handler is handler for connection in self._finishing.values()):
            await self._wait_for_change()

    async def _wait_for_change(self) -> None:
        """Wait until a session, or the task of an ended session, has ended."""
        self._changed.clear()
        await self._changed.wait()

    def end_grace_period(self) -> None:
        """Make :meth:`drain` cut the remaining sessions now."""
        self._grace_ended = True
        self._changed.set()

    async def _wait_until_ended(self) -> None:
        while (self._tickets or self._finishing) and not self._grace_ended:
            await self._wait_for_change()

    async def _cut(self) -> None:
        """Close all connections, cancel all tasks, and wait for their end for a limited time."""
        for task in list(self._handshakes):
            task.cancel()
        for connection in list(self._tickets):
            connection.cut()
        for finishing in list(self._finishing):
            finishing.cancel()
        self._grace_ended = False
        with suppress(TimeoutError):
            async with asyncio.timeout(CUT_SECONDS):
                await self._wait_until_ended()
        self.release_all()

    def release_all(self) -> None:
        """Release the remaining tickets, as the event loop ends."""
        for connection in list(self._tickets):
            what = "the session did not end, its connection slot is released"
            connection.dialogue.report(logging.ERROR, what)
            self._ended(connection)
        if self._poll is not None:
            self._poll.close()
            self._poll = None
