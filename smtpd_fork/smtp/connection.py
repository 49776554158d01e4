"""Connection: the input, output, deadlines and TLS of a session, which its Dialogue controls.

The transport calls its methods: a :class:`~..socket_transport.SocketTransport`, or with TLS a
transport of the event loop, with a :class:`~..protocol_adapter.ProtocolAdapter` between them.

These rules apply:

- :meth:`Connection.connection_lost` has an effect once for every connection; ``on_close`` is called
  then, and only then;
- every state has a deadline, at which a reply is sent, or the connection is closed or aborted;
- received bytes do not extend a deadline; only complete commands and a sufficient data rate do;
- the memory for a client is limited: input while a handler runs, output that the client does not
  read, and messages.
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
"""Bytes of input that are stored while a handler runs; further input stays in the kernel."""

_LEAVING, _CLOSING = State.LEAVING, State.CLOSING


class Connection(Status, asyncio.Protocol, Struct, eq=False, weakref=True):
    """A client's connection, and the host of its dialogue (:class:`~..dialogue.waiting.Host`).

    :param dialogue: the session's dialogue, which has this object as its host
    :param loop: the event loop of the session
    :param sweep: checks the deadline
    :param peer: the client's address from accept(2); default: that of the transport
    :param on_close: called once, when the connection is closed
    :param observed: whether the transport calls the methods of a user's class
    """

    dialogue: Dialogue
    loop: asyncio.AbstractEventLoop
    sweep: Sweep
    peer: Peer = None
    on_close: Callable[[Any], None] | None = None
    observed: bool = False
    transport: Any = None  # None before and after the session
    work: Work | None = None  # the operation that runs in a task
    owner: Owner | None = None  # decides on TLS handshakes and XCLIENT
    host_name_dns: str | None = None  # the verified reverse DNS name
    proxied: Any = None  # a PROXY header that was read before the session
    proxy_reader: asyncio.StreamReader | None = None
    kicked: bool = False  # whether an administrator ended it
    held: int = 0  # flags, see status.py
    ends_at: float = math.inf  # the loop's time at which the session must end
    deadline: float = 0.0  # the loop's time at which expired() is called
    idle_since: float = 0.0  # this and the next five: see deadlines.py
    command_began: float = 0.0
    stuck_at: float = 0.0
    events: int = 0
    rate_state: tuple[int, float, int] = (0, 0.0, 0)
    steps: tuple[int, int] = (-1, 0)
    hooks_context: Context | None = None
    end_future: asyncio.Future[None] | None = None
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

        :param shared: values that all sessions of a server share
        """
        dialogue = Dialogue(shared, new_session_id(), None)
        connection = dialogue.host = cls(dialogue, loop, sweep, peer, on_close, observed)
        if dialogue.debug:
            connection.held = WATCHED
        return connection

    def __repr__(self) -> str:
        fields = self.dialogue.log_fields()
        return f"<SMTP {fields['session']} {fields['client']}>"

    # These methods are in other modules, to keep this one short.
    abort, cut, kick, ended = ending.abort, ending.cut, ending.kick, property(ending.ended)
    end_delay = delays.end
    end_for_memory, end_for_resources, shut_down = (
        ending.end_for_memory,
        ending.end_for_resources,
        ending.shut_down,
    )
    expired, stuck_since = deadlines.expire, deadlines.stuck_since
    wait_for_command, wait_for_client = deadlines.wait_for_command, deadlines.wait_for_client
    ask_now, is_end = hooks.ask_now, hooks.is_end

    # -- methods of dialogue.waiting.Host ----------------------------------------------------------

    @property
    def context(self) -> Context:
        """The context in which all hooks of this session run, as in aiosmtpd's single task."""
        if self.hooks_context is None:
            self.hooks_context = copy_context()
            self.hooks_context.run(current_session.set, self.dialogue.id)
        return self.hooks_context

    def refuse_handshake(self) -> str | None:
        """Return the reason why a TLS handshake is not allowed, or None."""
        refusal = self.owner and self.owner.begin_handshake(self)
        if refusal:
            return refusal.words
        self.pause_reading()
        return None

    def new_waiter(self) -> asyncio.Future[Any]:
        """Return a new future."""
        return self.loop.create_future()

    def unsent(self) -> int:
        """Return the number of bytes that could not be sent yet."""
        if not self.held & BLOCKED or self.transport is None:
            return 0
        size: int = self.transport.get_write_buffer_size()
        return size

    # -- begin and end ---------------------------------------------------------------------------

    @property
    def protocol(self) -> asyncio.Protocol:
        """The object whose methods the transport calls."""
        return self.server if self.observed else self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the session; after STARTTLS, begin it again (asyncio.BaseProtocol)."""
        self.held &= ~(PAUSED | BLOCKED)  # with TLS, this is another transport
        try:
            opening.begin(self, transport)
        except BaseException:
            transport.abort()  # type: ignore[attr-defined]  # it then calls connection_lost
            raise

    def connection_lost(self, exc: Exception | None) -> None:
        """End the session; later calls do nothing (asyncio.BaseProtocol)."""
        dialogue = self.dialogue
        if dialogue.state == State.GONE:
            return
        self.transport = None
        delays.stop(self)
        dialogue.end()
        if dialogue.debug:
            log_debug(dialogue, "connection closed")
        try:
            self.sweep.forget(self)
            if self.work is not None:
                self.work.abandon(self._drained)
            else:
                ending.end_after_hook(self)
        finally:
            if self.on_close is not None:
                self.on_close(self)

    # -- input and output --------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Process received bytes (asyncio.Protocol)."""
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
            self.proceed()

    def _receive_early(self, data: bytes) -> None:
        """Store bytes while earlier input is processed, or pass them to code that awaits them."""
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
        """Handle the end of input; complete commands still get replies (asyncio.Protocol)."""
        dialogue = self.dialogue
        self.held |= ENDED
        if self.proxy_reader is not None:
            self.proxy_reader.feed_eof()
        if dialogue.awaited is not None:
            self.wait_for_client()
        elif self.held & DELAYED:
            delays.end_closed(self)
        elif self.waits:
            self.proceed()
        # A TLS transport cannot stay half open, and there is no need for it when closing.
        return not dialogue.tls and dialogue.state < _LEAVING

    def pause_writing(self) -> None:
        """Stop processing commands until the client reads its replies (asyncio.BaseProtocol)."""
        self.held |= BLOCKED
        self.pause_reading()
        memory.charge(self.dialogue)

    def resume_writing(self) -> None:
        """Process commands again (asyncio.BaseProtocol)."""
        self.held &= ~BLOCKED
        if self.dialogue.charged:
            memory.charge(self.dialogue)
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self.waits:
            self.dialogue.advance()
            self.proceed()

    def pause_reading(self) -> None:
        """Stop reading, so that input stays in the kernel."""
        if not self.held & PAUSED and self.transport is not None:
            self.held |= PAUSED
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if self.held & PAUSED and self.transport is not None:
            self.held &= ~PAUSED
            self.transport.resume_reading()

    def flush(self) -> None:
        """Send the replies with one write; close if the session has ended."""
        dialogue = self.dialogue
        out = dialogue.out
        if out and self.transport is not None:
            dialogue.out = b""
            if dialogue.debug:
                log_replies(dialogue, out)
            try:
                self.transport.write(out)
            except RuntimeError:  # raised by uvloop
                log_debug(dialogue, "a handler has closed the transport")
        if _LEAVING <= dialogue.state < _CLOSING:
            ending.close(self)

    async def drained(self) -> None:
        """Wait until the write buffer has space again."""
        if self.held & BLOCKED:
            self._drained = self.loop.create_future()
            await self._drained

    def proceed(self) -> None:
        """Send the replies, and start the operation of the dialogue or wait for the client."""
        dialogue = self.dialogue
        if dialogue.last_reply is not None and dialogue.waiting is None and not self.held & BLOCKED:
            dialogue.advance()
        if delays.delay(self):
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
        """Carry out an operation of the dialogue in a task."""
        Work(self, waiting)

    def _wait(self) -> None:
        """Wait for the client, or let other sessions run first; end at the end of input."""
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
            ending.send_last_reply(self)
        else:
            self.dialogue.advance()
            self.proceed()
