"""Connection: bytes, time and TLS of one session; its :class:`Dialogue` knows what they mean.

It is what the loop's transport talks to: a BufferedProtocol that receives into one buffer for all
sessions of a loop. With a Protocol the loop would allocate up to 256 KiB for each read, which goes
through mmap(2) and page faults every time, and doubles what large messages cost.

The laws:

- :meth:`Connection.connection_lost` acts once for every connection; ``on_close`` is called there
  and nowhere else;
- every state has a deadline, and every deadline ends in a reply, a close or a cut;
- no byte moves a deadline: completing a command does, or a message that comes fast enough;
- what is held for a client is bounded: input while busy, output while it does not read, messages.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Protocol, cast

from smtpd_fork.dialogue import memory
from smtpd_fork.dialogue.commands import State
from smtpd_fork.dialogue.dialogue import Dialogue
from smtpd_fork.dialogue.session import Session, current_session, new_session_id
from smtpd_fork.dialogue.waiting import Run
from smtpd_fork.net import plain_peer
from smtpd_fork.smtp import ending
from smtpd_fork.smtp.hooks import ask_now
from smtpd_fork.smtp.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from smtpd_fork.dialogue.shared import Shared
    from smtpd_fork.dialogue.waiting import Ask, Waiter
    from smtpd_fork.gate import Refusal
    from smtpd_fork.net import Peer
    from smtpd_fork.smtp.sweep import Sweep

__all__ = ["BUFFER_SIZE", "HELD_INPUT", "Connection", "ObservedConnection"]

log = logging.getLogger("smtpd_fork.session")

BUFFER_SIZE = 256 * 1024
"""What one read takes at most; uvloop's own figure, and enough for a socket's buffer."""

HELD_INPUT = 64 * 1024
"""Bytes that are read ahead while a handler is busy; past it the client waits in the kernel."""

PACE_SECONDS = 60.0
"""How long at least the rate of a message is taken over: neither a slow start nor a pause is an
attack. It is not taken over all of the message: a client that has sent much could stop for long."""

COMMAND_SECONDS = 60.0
"""Time for a command from its first byte to its end, if ``--timeout`` is not shorter: nginx has
as much for all headers of a request (client_header_timeout). Postfix also gives a command one time,
not one for each read (smtpd_per_request_deadline)."""

_TLS_FACTS = ("sslcontext", "ssl_object", "peercert", "cipher", "compression")

BLOCKED, ENDED, PAUSED, TURN = 1, 2, 4, 8
"""What keeps bytes from flowing: the client does not read; it has closed for writing; we do not
read; others have their turn first."""

STOPPED = BLOCKED | TURN
"""What keeps commands from being acted on."""

_LEAVING = State.LEAVING

_of_thread = threading.local()


class Handshakes(Protocol):
    """Knows whose TLS handshakes fail too often, and how long one may take."""

    @property
    def shorten(self) -> Callable[[float], float]:
        """Returns a time limit as it is now."""

    def begin_handshake(self, connection: Any) -> Refusal | None:
        """Return why a session is not to begin one."""

    def end_handshake(self, connection: Any) -> None:
        """Take note that one has succeeded."""


class Connection(asyncio.BufferedProtocol):
    """One client's connection; also the host of its dialogue (see :class:`Host` there).

    :param shared: what the session has in common with others
    :param loop: the session's own
    :param sweep: looks after the deadline
    :param peer: the client, where accept(2) told; default: what the transport says
    :param on_close: called once, when the connection is gone
    :ivar transport: the loop's; None before and after the connection
    :ivar work: what the session waits for, in a task; an idle one has none
    :ivar facade: the session as handlers know it, once there is somebody who does
    :ivar deadline: when :meth:`expired` is called, by the loop's clock, in seconds
    :ivar idle_since: since when the session waits for its client
    :ivar kicked: whether an administrator has ended it
    :ivar proxied: what a PROXY header said that was read before the session
    :ivar handshakes: whom to ask before a TLS handshake
    :ivar host_name_dns: the client's name by the DNS, if it was asked for and leads back
    """

    __slots__ = (
        *("__weakref__", "_command_began", "_context", "_drained", "_ended", "_ends_at"),
        *("_events", "_held", "_on_close", "_pace", "_steps"),
        *("_stuck_since", "_sweep", "_view", "deadline", "dialogue", "facade"),
        *("handshakes", "host_name_dns", "idle_since", "kicked", "loop", "peer", "proxied"),
        *("proxy_reader", "transport", "work"),
    )

    def __init__(
        self,
        shared: Shared,
        loop: asyncio.AbstractEventLoop,
        sweep: Sweep,
        *,
        peer: Peer = None,
        on_close: Callable[[Any], None] | None = None,
    ) -> None:
        try:
            self._view: memoryview = _of_thread.view
        except AttributeError:
            self._view = _of_thread.view = memoryview(bytearray(BUFFER_SIZE))
        self.loop = loop
        self.peer = peer
        self._sweep = sweep
        self._on_close = on_close
        self.dialogue = Dialogue(shared, new_session_id(), self)
        self.transport: Any = None
        self.work: Work | None = None
        self.facade: Any = None
        self.handshakes: Handshakes | None = None
        self.host_name_dns: str | None = None
        self.proxied: Any = None
        self.proxy_reader: asyncio.StreamReader | None = None
        self.kicked = False
        self.deadline = self.idle_since = 0.0
        self._ends_at = math.inf
        self._command_began = 0.0  # when the first byte of a command came whose end has not
        self._events = 0  # that had been acted on by then
        self._pace = (0, 0.0, 0)  # message, when it was last seen to come fast enough, its bytes
        self._steps, self._stuck_since = (-1, 0), 0.0
        self._held = 0  # what keeps bytes from flowing
        self._context: Context | None = None
        self._ended: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        who = self.dialogue.who()
        return f"<SMTP {who['session']} {who['client']}>"

    # -- what others ask -------------------------------------------------------------------------

    @property
    def shared(self) -> Shared:
        """What the session has in common with others."""
        return self.dialogue.shared

    @property
    def id(self) -> str:
        """Names the session in the logs, in ``Received:`` and in the reply to DATA."""
        return self.dialogue.id

    def rename(self, name: str) -> None:
        """Go on under the id by which the client was known before it had a session."""
        self.dialogue.id = name

    @property
    def tls(self) -> bool:
        """Whether TLS is spoken."""
        return self.dialogue.tls

    @property
    def messages(self) -> int:
        """Messages that were accepted so far."""
        return self.dialogue.messages

    @property
    def helo(self) -> str:
        """The name that the client gave itself, as it came; empty if it gave none."""
        return getattr(self.dialogue.session, "host_name", None) or ""

    @property
    def began(self) -> bool:
        """Whether the connection was made."""
        return self.dialogue.session is not None

    @property
    def gone(self) -> bool:
        """Whether the connection is lost."""
        return self.dialogue.state == State.GONE

    @property
    def task(self) -> asyncio.Task[None] | None:
        """What runs for this session now; an idle one has none."""
        return None if self.work is None else self.work.task

    @property
    def waits_for_line(self) -> bool:
        """Whether a task runs, and waits for the client."""
        return self.work is not None and self.dialogue.awaited is not None

    @property
    def phase(self) -> str:
        """What it does now: see :class:`smtpd_fork.gate.Entry`."""
        state = self.dialogue.state
        if not self.began or state == State.HANDSHAKE:
            return "handshake"
        if state >= _LEAVING:
            return "closing"
        if self.work is not None and self.dialogue.awaited is None:
            return "handler"
        return "command" if self.dialogue.reading is None else "data"

    def stuck_since(self) -> float:
        """Return since when its client has got no further; asked only while slots are short.

        Further is: TLS, a name, authentication, a sender, twice as many recipients, each of them
        once until a message is accepted.
        """
        state, session, envelope = self.dialogue.state, self.dialogue.session, None
        assert session is not None
        if state not in {State.HELLO, State.READY}:
            envelope = self.dialogue.envelope
        recipients = len(envelope.rcpt_tos) if envelope is not None else 0
        steps = (
            self.messages,
            self.tls
            + bool(session.host_name)
            + bool(session.authenticated)
            + bool(envelope is not None and envelope.mail_from)
            + recipients.bit_length(),
        )
        if steps > self._steps:
            self._steps = steps
            self._stuck_since = self.idle_since
        return self._stuck_since

    # -- what the dialogue asks --------------------------------------------------------------------

    @property
    def server(self) -> Any:
        """The session as handlers know it; made when it is first asked for."""
        if self.facade is None:
            self.facade = self.dialogue.shared.cls.of(self)  # type: ignore[attr-defined]  # SMTP has it
        return self.facade

    @property
    def context(self) -> Context:
        """The context that all of this session's hooks run in, as in aiosmtpd's one task."""
        if self._context is None:
            self._context = copy_context()
            self._context.run(current_session.set, self.dialogue.id)
        return self._context

    def ask_now(self, ask: Ask) -> Any:
        """Return what a hook that never waits answers."""
        return ask_now(self, ask)

    def refuse_handshake(self) -> str | None:
        """Return why the client is not to begin a TLS handshake; None: it is."""
        refusal = self.handshakes and self.handshakes.begin_handshake(self)
        if refusal:
            return refusal.words
        self.pause_reading()
        return None

    def new_waiter(self) -> Waiter:
        """Return something to wait with."""
        return self.loop.create_future()

    def unsent(self) -> int:
        """Return how many bytes wait for a client that does not read."""
        if not self._held & BLOCKED or self.transport is None:
            return 0
        size: int = self.transport.get_write_buffer_size()
        return size

    def wait_for_client(self) -> None:
        """Give the client its time for what a method of the session waits for."""
        dialogue = self.dialogue
        if dialogue.awaited is None or dialogue.awaited.done():
            return
        if self._held & ENDED or dialogue.state >= _LEAVING:
            dialogue.leave()  # so that it passes for the session's end, as it is
            dialogue.awaited.cancel()
            return
        self.resume_reading()
        if dialogue.reading is not None:
            self._wait()

    def give_way(self, held: int) -> bool:
        """End, as memory is short and this session holds much of it without going on.

        :param held: how much, in bytes
        :returns: False if that cannot be: a handler works for it
        """
        return ending.give_way(self, held)

    # -- life ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin (asyncio.BaseProtocol)."""
        try:
            self.begin(transport)
        except BaseException:
            transport.abort()  # type: ignore[attr-defined]  # a stream's; its connection_lost comes
            raise

    def begin(self, transport: asyncio.BaseTransport) -> None:
        """Begin the session; under TLS after STARTTLS begin anew."""
        again = self.began
        self.transport = transport
        self._held &= ~PAUSED
        self._new_session()
        if again or transport.get_extra_info("sslcontext") is not None:
            self._use_tls()  # from the first byte: STARTTLS is not offered
        if again:
            return
        limits = self.dialogue.shared.limits
        now = self.loop.time()
        if limits.session_seconds:
            self._ends_at = now + limits.session_seconds
        self._sweep.watch(self)
        self.idle_since = now
        self.deadline = min(self._ends_at, now + limits.command_seconds)
        self._open()
        self.go_on()

    def _open(self) -> None:
        """Greet, once whoever has to be asked has been."""
        dialogue, shared = self.dialogue, self.dialogue.shared
        if dialogue.farewell is not None:
            dialogue.advance()
        elif shared.proxy_seconds is not None:
            self.proxy_reader = asyncio.StreamReader(loop=self.loop)
            # It pauses the transport by itself: what comes behind a header is bounded.
            self.proxy_reader.set_transport(self.transport)
            dialogue.waiting = Run("read_proxy_header", (shared.proxy_seconds,))
        elif self.proxied is not None and "PROXY" in shared.hooks:
            dialogue.waiting = Run("judge_proxy_header")
        elif "CONNECT" in shared.hooks:
            dialogue.waiting = Run("greet")
        else:
            dialogue.greet()

    def _new_session(self) -> None:
        dialogue, before = self.dialogue, self.dialogue.session
        shared = dialogue.shared
        if self.peer is None:
            self.peer = self.transport.get_extra_info("peername")
        own = shared.own_session
        session = self.server._create_session() if own else Session(self.loop, dialogue.id)  # noqa: SLF001 - aiosmtpd's name
        session.peer = plain_peer(self.peer)
        session.proxy_data = before.proxy_data if before is not None else self.proxied
        if isinstance(session, Session):
            session._transport = self.transport  # noqa: SLF001 - of this package
            session.lmtp = shared.lmtp
            if self.host_name_dns is not None:
                session.host_name_dns = self.host_name_dns
        dialogue.begin(session)
        if dialogue.debug:  # who() costs, and mostly for nobody
            who = dialogue.who()
            log.debug("[%s] connected: %s", self.id, who["client"], extra=who)

    def _use_tls(self) -> None:
        self.shared.tally.tls_done += 1
        if self.handshakes is not None:
            self.handshakes.end_handshake(self)
        dialogue = self.dialogue
        assert dialogue.session is not None
        dialogue.session.ssl = {name: self.transport.get_extra_info(name) for name in _TLS_FACTS}
        dialogue.set_rows()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the session, once (asyncio.BaseProtocol)."""
        self.lose()

    def lose(self) -> None:
        """End the session: the connection is lost."""
        dialogue = self.dialogue
        if dialogue.state == State.GONE:
            return
        self.transport = None
        dialogue.end()
        if dialogue.debug:
            log.debug("[%s] connection closed", self.id, extra=dialogue.who())
        try:
            self._sweep.forget(self)
            if self.work is not None:
                self.work.abandon(self._drained)
            else:
                self.say_disconnected()
        finally:
            if self._on_close is not None:
                self._on_close(self)

    def say_disconnected(self) -> None:
        """Tell a handler that the session has ended, and let go of it."""
        if "DISCONNECT" in self.dialogue.shared.hooks and self.began:
            self.work = Work(self, Run("tell_disconnected"))
        else:
            self.let_go()

    def let_go(self) -> None:
        """Keep nothing that may refer to this session: the connection is lost, and nothing runs.

        Python frees an ended session at once if nothing that it refers to refers back. Its garbage
        collector comes too late: a client can make sessions faster, each with a message.
        """
        dialogue = self.dialogue
        self.work = self._context = None
        dialogue.waiting = None
        dialogue.reset()
        if isinstance(dialogue.session, Session):
            dialogue.session.forget_transport()
        dialogue.host = self.facade = None
        self.tell_ended()

    @property
    def ended(self) -> asyncio.Future[None]:
        """Is done when the session is."""
        if self._ended is None:
            self._ended = self.loop.create_future()
            if self.gone and self.work is None:
                self._ended.set_result(None)
        return self._ended

    def tell_ended(self) -> None:
        """Have who waits for the end know of it."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    # -- input and output --------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to receive to (asyncio.BufferedProtocol)."""
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was received, before it is overwritten (asyncio.BufferedProtocol)."""
        dialogue = self.dialogue
        dialogue.shared.tally.received += nbytes
        if dialogue.waiting is None and not self._held & STOPPED:
            dialogue.receive(self._view[:nbytes].tobytes())
            self.go_on()
        else:
            self._receive_early(self._view[:nbytes].tobytes())

    def receive(self, data: bytes) -> None:
        """Take bytes."""
        dialogue = self.dialogue
        if dialogue.waiting is None and not self._held & STOPPED:
            dialogue.receive(data)
            self.go_on()
        else:
            self._receive_early(data)

    def _receive_early(self, data: bytes) -> None:
        """Take bytes while what came before them is not answered; or the answer to a challenge."""
        dialogue = self.dialogue
        if self.proxy_reader is not None:
            self.proxy_reader.feed_data(data)
            return
        dialogue.keep(data)
        if dialogue.awaited is not None:
            dialogue.hand_over()
            self.wait_for_client()
        elif dialogue.pending > HELD_INPUT:
            self.pause_reading()
            memory.charge(dialogue)

    def eof_received(self) -> bool | None:
        """Take the end of the input (asyncio.BufferedProtocol)."""
        return self.receive_eof()

    def receive_eof(self) -> bool | None:
        """Take the end of input; what was complete is still answered."""
        dialogue = self.dialogue
        self._held |= ENDED
        if self.proxy_reader is not None:
            self.proxy_reader.feed_eof()
        if dialogue.awaited is not None:
            self.wait_for_client()
        elif self.waits:
            self.go_on()
        # A TLS transport cannot stay half open, and one that is closing need not.
        return not dialogue.tls and dialogue.state < _LEAVING

    def pause_writing(self) -> None:
        """Act on no more commands while the client does not read (asyncio.BaseProtocol)."""
        self._held |= BLOCKED
        self.pause_reading()
        memory.charge(self.dialogue)

    def resume_writing(self) -> None:
        """Go on (asyncio.BaseProtocol)."""
        self._held &= ~BLOCKED
        if self.dialogue.charged:
            memory.charge(self.dialogue)
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self.waits:
            self.dialogue.advance()
            self.go_on()

    def pause_reading(self) -> None:
        """Leave what the client sends in the kernel."""
        if not self._held & PAUSED and self.transport is not None:
            self._held |= PAUSED
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if self._held & PAUSED and self.transport is not None:
            self._held &= ~PAUSED
            self.transport.resume_reading()

    def flush(self) -> None:
        """Send what the dialogue says, in one write; close if it says that the session is over."""
        dialogue = self.dialogue
        out = dialogue.out
        if out and self.transport is not None:
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            try:
                self.transport.write(data)
            except RuntimeError:
                # What uvloop raises.
                log.debug("[%s] a handler has closed the transport", self.id, extra=dialogue.who())
        if _LEAVING <= dialogue.state < State.CLOSING:
            ending.hang_up(self, eof=bool(self._held & ENDED))

    async def drained(self) -> None:
        """Wait while the client does not take what is sent."""
        if self._held & BLOCKED:
            self._drained = self.loop.create_future()
            await self._drained

    def go_on(self) -> None:
        """Send what the dialogue says, carry out what it waits for, and wait for the client."""
        dialogue = self.dialogue
        if dialogue.farewell is not None and dialogue.waiting is None and not self.blocked:
            dialogue.advance()
        if dialogue.state >= _LEAVING:
            self.flush()
            return
        if dialogue.out:
            self.flush()
        if dialogue.waiting is not None:
            if self.work is None:
                if dialogue.pending > memory.ALLOWANCE:
                    memory.charge(dialogue)
                Work(self, dialogue.waiting)
        elif dialogue.framer is None and dialogue.chunks is None and not self._held:
            self._wait_for_next(dialogue)  # as mostly: it is answered all that it has said
        else:
            self._wait()

    def _take_turns(self) -> None:
        """Let other sessions have their turn, and go on after them."""
        self.pause_reading()
        self._held |= TURN
        self.loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._held &= ~TURN
        if self.gone or self._held & BLOCKED:
            return
        if self.kicked:
            ending.take_leave(self)
        else:
            self.dialogue.advance()
            self.go_on()

    # -- time --------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Give the client its time for what comes next."""
        dialogue = self.dialogue
        if self._held & BLOCKED:
            return
        if dialogue.more:
            self._take_turns()
        elif self._held & ENDED:
            dialogue.leave()
            self.flush()
        else:
            self.resume_reading()
            if dialogue.framer is None and dialogue.chunks is None:
                self._wait_for_next(dialogue)
            else:
                self._wait_for_rest(self.loop.time())

    def _wait_for_next(self, dialogue: Dialogue) -> None:
        """Give the client its time for a command, or for a message of which nothing has come."""
        if dialogue.charged:
            memory.charge(dialogue)
        limits = dialogue.shared.limits
        seconds = limits.command_seconds
        self.idle_since = now = self.loop.time()
        self._command_began = 0.0
        if dialogue.body is not None:
            seconds = limits.data_seconds
            self._pace = dialogue.begun, now, 0
        deadline = now + seconds
        self.deadline = min(self._ends_at, deadline)

    def _wait_for_rest(self, now: float) -> None:
        """Give the client its time for the rest of a message, or of a command that has begun."""
        dialogue = self.dialogue
        if dialogue.charged:
            memory.charge(dialogue)
        limits = dialogue.shared.limits
        reading = dialogue.reading
        if self._events != dialogue.events:
            self._events = dialogue.events
            self._command_began = 0.0
        if reading is not None:
            self.idle_since = now
            self.deadline = min(self._ends_at, now + limits.data_seconds)
            memory.charge(dialogue, reading)
            self._see_pace(now, reading.size)
            return
        seconds = limits.command_seconds
        if dialogue.chunks is not None:
            seconds = min(seconds, limits.data_seconds)
            self._see_pace(now, dialogue.chunks.size)
        if dialogue.framer is None or dialogue.framer.idle:
            self.idle_since = now
            self.deadline = min(self._ends_at, now + seconds)
        elif not self._command_began:
            self._command_began = self.idle_since = now
            self.deadline = min(self._ends_at, now + min(seconds, COMMAND_SECONDS))

    def _see_pace(self, now: float, came: int) -> None:
        """End a session whose message has come too slowly, by what the last minute brought."""
        message, since, before = self._pace
        if message != self.dialogue.begun:
            self._pace = self.dialogue.begun, now, 0
            return
        seconds = now - since
        if seconds < PACE_SECONDS:
            return
        self._pace = message, now, came
        if came - before < seconds * self.shared.limits.data_rate:
            self.dialogue.report(logging.INFO, "the message comes too slowly")
            ending.time_out(self)

    def wait_for_command(self) -> None:
        """Give the client its time for one line: no byte of it gives more."""
        self.idle_since = now = self.loop.time()
        self.deadline = min(self._ends_at, now + self.shared.limits.command_seconds)

    def expired(self, now: float) -> None:
        """Act on the deadline that has passed."""
        ending.expire(self, now)

    # -- ending (see the module of that name) ------------------------------------------------------

    def abort(self) -> None:
        """Cut the connection; what is unsent is lost."""
        ending.abort(self)

    def cut(self) -> None:
        """Cut the connection, and cancel whatever a handler has in hand."""
        ending.cut(self)

    def shut_down(self) -> None:
        """Say 421 and close: at once if the client is idle, else after the command in hand."""
        ending.shut_down(self)

    def kick(self, reply: bytes) -> None:
        """Say *reply* and close, also in the middle of a message; see :func:`ending.kick`."""
        ending.kick(self, reply)

    def make_room(self, reply: bytes, reason: str) -> None:
        """Say *reply* and close: other clients need what this one has and does nothing with."""
        ending.make_room(self, reply, reason)

    @property
    def waits(self) -> bool:
        """Whether nothing runs and nothing is about to: the session waits for its client."""
        return self.work is None and self.dialogue.waiting is None and not self._held & TURN

    @property
    def blocked(self) -> bool:
        """Whether the client does not read."""
        return bool(self._held & BLOCKED)


class ObservedConnection(Connection):
    """A connection whose session's class is a user's: it sees all that the transport says."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin (asyncio.BaseProtocol)."""
        try:
            self.server.connection_made(transport)
        except BaseException:
            transport.abort()  # type: ignore[attr-defined]  # as above
            raise

    def connection_lost(self, exc: Exception | None) -> None:
        """End the session, once (asyncio.BaseProtocol)."""
        if self.facade is not None:
            self.facade.connection_lost(exc)
        else:
            self.lose()

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was received, before it is overwritten (asyncio.BufferedProtocol)."""
        self.shared.tally.received += nbytes
        self.server.data_received(self._view[:nbytes].tobytes())

    def eof_received(self) -> bool | None:
        """Take the end of the input (asyncio.BufferedProtocol)."""
        return cast("bool | None", self.server.eof_received())

    def pause_writing(self) -> None:
        """Write no more for now (asyncio.BaseProtocol)."""
        self.server.pause_writing()

    def resume_writing(self) -> None:
        """Write again (asyncio.BaseProtocol)."""
        self.server.resume_writing()
