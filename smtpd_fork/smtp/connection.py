"""Connection: bytes, time and TLS of one session; its :class:`Dialogue` knows what they mean.

It is what the transport talks to: a :class:`~..socket_transport.SocketTransport`, or under TLS the
loop's, with a :class:`~..protocol_adapter.ProtocolAdapter` between them.

The laws:

- :meth:`Connection.connection_lost` acts once for every connection, and ``on_close`` is called then
  and at no other time;
- every state has a deadline, and every deadline ends in a reply, a close or a cut;
- no byte moves a deadline: completing a command does, or a message that comes fast enough;
- what is held for a client is bounded: input while busy, output while it does not read, messages.
"""

from __future__ import annotations

import asyncio
import logging
import math
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Self

from msgspec import Struct

from smtpd_fork.dialogue import memory
from smtpd_fork.dialogue.client_log import log_debug, log_replies
from smtpd_fork.dialogue.commands import State
from smtpd_fork.dialogue.dialogue import Dialogue
from smtpd_fork.dialogue.session import current_session
from smtpd_fork.gate.ticket import new_session_id
from smtpd_fork.smtp import deadlines, delays, ending, hooks, opening
from smtpd_fork.smtp.status import (
    BLOCKED,
    DELAYED,
    ENDED,
    PAUSED,
    STOPPED,
    TURN,
    WATCHED,
    Owner,
    Status,
)
from smtpd_fork.smtp.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from smtpd_fork.dialogue.shared import Shared
    from smtpd_fork.dialogue.waiting import Waiting
    from smtpd_fork.peer_address import Peer
    from smtpd_fork.smtp.sweep import Sweep

__all__ = ["HELD_INPUT", "Connection"]

log = logging.getLogger("smtpd_fork.session")

HELD_INPUT = 64 * 1024
"""Bytes that are read ahead while a handler is busy; past it the client waits in the kernel."""

_LEAVING, _CLOSING = State.LEAVING, State.CLOSING


class Connection(Status, asyncio.Protocol, Struct, eq=False, weakref=True):
    """One client's connection, and the host of its dialogue (:class:`~..dialogue.waiting.Host`).

    :param dialogue: what is said; it has this as its host
    :param loop: the session's own
    :param sweep: looks after the deadline
    :param peer: the client, where accept(2) told; default: what the transport says
    :param on_close: called once, when the connection is gone
    :param observed: whether a user's class sees what the transport says
    """

    dialogue: Dialogue
    loop: asyncio.AbstractEventLoop
    sweep: Sweep
    peer: Peer = None
    on_close: Callable[[Any], None] | None = None
    observed: bool = False
    transport: Any = None  # None before and after the connection
    work: Work | None = None  # what it waits for, in a task; an idle one has none
    owner: Owner | None = None  # is asked before a TLS handshake, and about another client
    host_name_dns: str | None = None  # by the DNS, if it was asked for and leads back
    proxied: Any = None  # what a PROXY header said that was read before the session
    proxy_reader: asyncio.StreamReader | None = None
    kicked: bool = False  # whether an administrator has ended it
    held: int = 0  # what takes more than sending replies: see status.py
    ends_at: float = math.inf  # when the session is to end, by the loop's clock, in seconds
    deadline: float = 0.0  # when expired() is called
    idle_since: float = 0.0  # see deadlines.py for this and the next five
    command_began: float = 0.0
    stuck_at: float = 0.0
    events: int = 0
    pace: tuple[int, float, int] = (0, 0.0, 0)
    steps: tuple[int, int] = (-1, 0)
    hooks_context: Context | None = None
    end_told: asyncio.Future[None] | None = None
    _drained: asyncio.Future[None] | None = None

    @classmethod
    def of(
        cls,
        shared: Shared,
        loop: asyncio.AbstractEventLoop,
        sweep: Sweep,
        *,
        peer: Peer = None,
        on_close: Callable[[Any], None] | None = None,
        observed: bool = False,
    ) -> Self:
        """Return the connection of a new session.

        :param shared: what the session has in common with others
        """
        dialogue = Dialogue(shared, new_session_id(), None)
        connection = dialogue.host = cls(dialogue, loop, sweep, peer, on_close, observed)
        if dialogue.debug:
            connection.held = WATCHED
        return connection

    def __repr__(self) -> str:
        who = self.dialogue.log_fields()
        return f"<SMTP {who['session']} {who['client']}>"

    # What else it does has files of its own: how it ends, and what time it gives the client.
    abort, cut, kick, ended = ending.abort, ending.cut, ending.kick, property(ending.ended)
    end_delay = delays.end
    end_for_memory, make_room, shut_down = ending.end_for_memory, ending.make_room, ending.shut_down
    expired, stuck_since = deadlines.expire, deadlines.stuck_since
    wait_for_command, wait_for_client = deadlines.wait_for_command, deadlines.wait_for_client
    ask_now, is_end = hooks.ask_now, hooks.is_end

    # -- what the dialogue asks --------------------------------------------------------------------

    @property
    def context(self) -> Context:
        """The context that all of this session's hooks run in, as in aiosmtpd's one task."""
        if self.hooks_context is None:
            self.hooks_context = copy_context()
            self.hooks_context.run(current_session.set, self.dialogue.id)
        return self.hooks_context

    def refuse_handshake(self) -> str | None:
        """Return why the client is not to begin a TLS handshake; None: it is."""
        refusal = self.owner and self.owner.begin_handshake(self)
        if refusal:
            return refusal.words
        self.pause_reading()
        return None

    def new_waiter(self) -> asyncio.Future[Any]:
        """Return something to wait with."""
        return self.loop.create_future()

    def unsent(self) -> int:
        """Return how many bytes wait for a client that does not read."""
        if not self.held & BLOCKED or self.transport is None:
            return 0
        size: int = self.transport.get_write_buffer_size()
        return size

    # -- life ------------------------------------------------------------------------------------

    @property
    def protocol(self) -> asyncio.Protocol:
        """The protocol that the transport calls."""
        return self.server if self.observed else self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the session; under TLS after STARTTLS begin anew (asyncio.BaseProtocol)."""
        self.held &= ~(PAUSED | BLOCKED)  # under TLS it is another transport
        try:
            opening.begin(self, transport)
        except BaseException:
            transport.abort()  # type: ignore[attr-defined]  # a stream's; its connection_lost comes
            raise

    def connection_lost(self, exc: Exception | None) -> None:
        """End the session, once (asyncio.BaseProtocol)."""
        dialogue = self.dialogue
        if dialogue.state == State.GONE:
            return
        self.transport = None
        delays.let_go(self)
        dialogue.end()
        if dialogue.debug:
            log_debug(dialogue, "connection closed")
        try:
            self.sweep.forget(self)
            if self.work is not None:
                self.work.abandon(self._drained)
            else:
                ending.say_disconnected(self)
        finally:
            if self.on_close is not None:
                self.on_close(self)

    # -- input and output --------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Take bytes (asyncio.Protocol)."""
        dialogue = self.dialogue
        tally = dialogue.shared.tally
        if tally.timing:
            tally.received += len(data)
        if dialogue.waiting is not None or self.held & STOPPED:
            self._receive_early(data)
        elif dialogue.receive(data) and not self.held:
            self.transport.write(dialogue.out)
            dialogue.out = b""
            deadlines.wait_for_next(self)
        else:
            self.go_on()

    def _receive_early(self, data: bytes) -> None:
        """Take bytes while what came before them is not answered; or the answer to a challenge."""
        dialogue = self.dialogue
        if self.proxy_reader is not None:
            self.proxy_reader.feed_data(data)
            return
        dialogue.keep(data)
        if dialogue.awaited is not None:
            dialogue.pass_event()
            self.wait_for_client()
        elif dialogue.pending > HELD_INPUT:
            self.pause_reading()
            memory.charge(dialogue)

    def eof_received(self) -> bool | None:
        """Take the end of input; what was complete is still answered (asyncio.Protocol)."""
        dialogue = self.dialogue
        self.held |= ENDED
        if self.proxy_reader is not None:
            self.proxy_reader.feed_eof()
        if dialogue.awaited is not None:
            self.wait_for_client()
        elif self.held & DELAYED:
            delays.give_up(self)
        elif self.waits:
            self.go_on()
        # A TLS transport cannot stay half open, and one that is closing need not.
        return not dialogue.tls and dialogue.state < _LEAVING

    def pause_writing(self) -> None:
        """Act on no more commands while the client does not read (asyncio.BaseProtocol)."""
        self.held |= BLOCKED
        self.pause_reading()
        memory.charge(self.dialogue)

    def resume_writing(self) -> None:
        """Go on (asyncio.BaseProtocol)."""
        self.held &= ~BLOCKED
        if self.dialogue.charged:
            memory.charge(self.dialogue)
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self.waits:
            self.dialogue.advance()
            self.go_on()

    def pause_reading(self) -> None:
        """Read no more: what the client sends stays in the kernel."""
        if not self.held & PAUSED and self.transport is not None:
            self.held |= PAUSED
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if self.held & PAUSED and self.transport is not None:
            self.held &= ~PAUSED
            self.transport.resume_reading()

    def flush(self) -> None:
        """Send the replies in one write; close if the session is over."""
        dialogue = self.dialogue
        out = dialogue.out
        if out and self.transport is not None:
            dialogue.out = b""
            if dialogue.debug:
                log_replies(dialogue, out)
            try:
                self.transport.write(out)
            except RuntimeError:  # uvloop's
                log_debug(dialogue, "a handler has closed the transport")
        if _LEAVING <= dialogue.state < _CLOSING:
            ending.hang_up(self)

    async def drained(self) -> None:
        """Wait while the client does not take what is sent."""
        if self.held & BLOCKED:
            self._drained = self.loop.create_future()
            await self._drained

    def go_on(self) -> None:
        """Send the replies, start what the dialogue waits for, or wait for the client."""
        dialogue = self.dialogue
        if dialogue.last_reply is not None and dialogue.waiting is None and not self.held & BLOCKED:
            dialogue.advance()
        if delays.hold(self):
            return
        self.flush()
        if dialogue.state >= _LEAVING:
            return
        if dialogue.waiting is None:
            self._wait()
        elif self.work is None:
            if dialogue.pending > memory.ALLOWANCE:
                memory.charge(dialogue)
            self.start(dialogue.waiting)

    def start(self, waiting: Waiting) -> None:
        """Have something carried out in a task."""
        Work(self, waiting)

    def _wait(self) -> None:
        """Wait for the client, or for other sessions' turn; or end if nothing more can come."""
        dialogue = self.dialogue
        if self.held & BLOCKED:
            return
        if dialogue.more:
            self.pause_reading()
            self.held |= TURN
            self.loop.call_soon(self._next_turn)
        elif self.held & ENDED:
            dialogue.leave()
            self.flush()
        else:
            self.resume_reading()
            deadlines.wait(self)

    def _next_turn(self) -> None:
        self.held &= ~TURN
        if self.gone or self.held & BLOCKED:
            return
        if self.kicked:
            ending.take_leave(self)
        else:
            self.dialogue.advance()
            self.go_on()
