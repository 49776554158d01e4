"""Connection: bytes, time and TLS of one session; its :class:`Dialogue` knows what they mean.

It is what the loop's transport talks to: a BufferedProtocol that receives into one buffer for all
sessions of a loop. With a Protocol the loop would allocate up to 256 KiB for each read, which goes
through mmap(2) and page faults every time, and doubles what large messages cost.

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
from typing import TYPE_CHECKING, Any, Protocol

from smtpd_fork.dialogue import memory
from smtpd_fork.dialogue.commands import State
from smtpd_fork.dialogue.dialogue import Dialogue
from smtpd_fork.dialogue.session import Session, current_session, new_session_id
from smtpd_fork.dialogue.waiting import Run
from smtpd_fork.net import plain_peer
from smtpd_fork.smtp import ending, patience
from smtpd_fork.smtp.hooks import ask_now
from smtpd_fork.smtp.wire import Wire, buffer
from smtpd_fork.smtp.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from smtpd_fork.dialogue.shared import Shared
    from smtpd_fork.gate import Refusal
    from smtpd_fork.net import Peer
    from smtpd_fork.smtp.sweep import Sweep

__all__ = ["HELD_INPUT", "Connection"]

log = logging.getLogger("smtpd_fork.session")

HELD_INPUT = 64 * 1024
"""Bytes that are read ahead while a handler is busy; past it the client waits in the kernel."""

BLOCKED, ENDED, PAUSED, TURN = 1, 2, 4, 8
"""What keeps bytes from flowing: the client does not read; it has closed for writing; we do not
read; others have their turn first."""

STOPPED = BLOCKED | TURN
"""What keeps commands from being acted on."""

_TLS_FACTS = ("sslcontext", "ssl_object", "peercert", "cipher", "compression")

_LEAVING = State.LEAVING


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
    """One client's connection, and the host of its dialogue (:class:`~..dialogue.waiting.Host`).

    :param shared: what the session has in common with others
    :param loop: the session's own
    :param sweep: looks after the deadline
    :param peer: the client, where accept(2) told; default: what the transport says
    :param on_close: called once, when the connection is gone
    :param observed: whether a user's class sees what the transport says
    :ivar transport: the loop's; None before and after the connection
    :ivar work: what the session waits for, in a task; an idle one has none
    :ivar facade: the session as handlers know it, once there is somebody who does
    :ivar deadline: when :meth:`expired` is called, by the loop's clock, in seconds
    :ivar idle_since: since when the session waits for its client
    :ivar held: what keeps bytes from flowing
    :ivar kicked: whether an administrator has ended it
    :ivar proxied: what a PROXY header said that was read before the session
    :ivar handshakes: whom to ask before a TLS handshake
    :ivar host_name_dns: the client's name by the DNS, if it was asked for and leads back
    """

    __slots__ = (
        *("__weakref__", "_context", "_drained", "_ended", "_on_close", "_sweep", "_view"),
        *("command_began", "deadline", "dialogue", "ends_at", "events", "facade", "handshakes"),
        *("held", "host_name_dns", "idle_since", "kicked", "loop", "observed", "pace", "peer"),
        *("proxied", "proxy_reader", "steps", "stuck_at", "transport", "work"),
    )

    def __init__(
        self,
        shared: Shared,
        loop: asyncio.AbstractEventLoop,
        sweep: Sweep,
        *,
        peer: Peer = None,
        on_close: Callable[[Any], None] | None = None,
        observed: bool = False,
    ) -> None:
        self._view = buffer()
        self.loop = loop
        self.peer = peer
        self.observed = observed
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
        self.held = 0
        self.ends_at = math.inf
        self.deadline = self.idle_since = self.command_began = self.stuck_at = 0.0
        self.events = 0
        self.pace, self.steps = (0, 0.0, 0), (-1, 0)  # see patience.py
        self._context: Context | None = None
        self._ended: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        who = self.dialogue.who()
        return f"<SMTP {who['session']} {who['client']}>"

    # What else it does has files of its own: how it ends, and what time it gives the client.
    abort, cut, kick = ending.abort, ending.cut, ending.kick
    give_way, make_room, shut_down = ending.give_way, ending.make_room, ending.shut_down
    expired, stuck_since = patience.expire, patience.stuck_since
    wait_for_command, wait_for_client = patience.wait_for_command, patience.wait_for_client

    # -- what others ask -------------------------------------------------------------------------

    @property
    def shared(self) -> Shared:
        """What the session has in common with others."""
        return self.dialogue.shared

    @property
    def id(self) -> str:
        """Names the session in the logs, in ``Received:`` and in the reply to DATA."""
        return self.dialogue.id

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
    def waits(self) -> bool:
        """Whether nothing runs and nothing is about to: the session waits for its client."""
        return self.work is None and self.dialogue.waiting is None and not self.held & TURN

    @property
    def blocked(self) -> bool:
        """Whether the client does not read."""
        return bool(self.held & BLOCKED)

    @property
    def ended_input(self) -> bool:
        """Whether the client has closed for writing."""
        return bool(self.held & ENDED)

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

    ask_now = ask_now

    def refuse_handshake(self) -> str | None:
        """Return why the client is not to begin a TLS handshake; None: it is."""
        refusal = self.handshakes and self.handshakes.begin_handshake(self)
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

    def protocol(self, *, tls: bool) -> asyncio.BufferedProtocol:
        """Return what the transport is to talk to.

        :param tls: whether it speaks TLS
        """
        if self.observed:
            return Wire(self.server)
        return Wire(self) if tls else self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the session; under TLS after STARTTLS begin anew (asyncio.BaseProtocol)."""
        try:
            self._begin(transport)
        except BaseException:
            transport.abort()  # type: ignore[attr-defined]  # a stream's; its connection_lost comes
            raise

    def _begin(self, transport: asyncio.BaseTransport) -> None:
        again = self.began
        self.transport = transport
        self.held &= ~PAUSED
        self._new_session()
        if again or transport.get_extra_info("sslcontext") is not None:
            self._use_tls()  # from the first byte: STARTTLS is not offered
        if again:
            return
        limits = self.dialogue.shared.limits
        now = self.loop.time()
        if limits.session_seconds:
            self.ends_at = now + limits.session_seconds
        self._sweep.watch(self)
        self.idle_since = now
        self.deadline = min(self.ends_at, now + limits.command_seconds)
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
            log.debug("[%s] connected: %s", dialogue.id, who["client"], extra=who)

    def _use_tls(self) -> None:
        dialogue = self.dialogue
        dialogue.shared.tally.tls_done += 1
        if self.handshakes is not None:
            self.handshakes.end_handshake(self)
        assert dialogue.session is not None
        dialogue.session.ssl = {name: self.transport.get_extra_info(name) for name in _TLS_FACTS}
        dialogue.set_rows()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the session, once (asyncio.BaseProtocol)."""
        dialogue = self.dialogue
        if dialogue.state == State.GONE:
            return
        self.transport = None
        dialogue.end()
        if dialogue.debug:
            log.debug("[%s] connection closed", dialogue.id, extra=dialogue.who())
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
            Work(self, Run("tell_disconnected"))
        else:
            self.let_go()

    def let_go(self) -> None:
        """Keep nothing that may refer to this session: the connection is lost, and nothing runs.

        Python frees an ended session at once if nothing that it refers to refers back. Its garbage
        collector comes too late: a client can make sessions faster, each with a message.
        """
        dialogue = self.dialogue
        self.work = self._context = dialogue.waiting = None
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
        self.data_received(self._view[:nbytes].tobytes())

    def data_received(self, data: bytes) -> None:
        """Take bytes (asyncio.Protocol)."""
        dialogue = self.dialogue
        tally = dialogue.shared.tally
        if tally.timing:
            tally.received += len(data)
        if dialogue.waiting is None and not self.held & STOPPED:
            dialogue.receive(data)
            self.go_on()
        elif self.proxy_reader is not None:
            self.proxy_reader.feed_data(data)
        else:
            self._receive_early(data)

    def _receive_early(self, data: bytes) -> None:
        """Take bytes while what came before them is not answered; or the answer to a challenge."""
        dialogue = self.dialogue
        dialogue.keep(data)
        if dialogue.awaited is not None:
            dialogue.hand_over()
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
        """Leave what the client sends in the kernel."""
        if not self.held & PAUSED and self.transport is not None:
            self.held |= PAUSED
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if self.held & PAUSED and self.transport is not None:
            self.held &= ~PAUSED
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
                text = "[%s] a handler has closed the transport"
                log.debug(text, dialogue.id, extra=dialogue.who())
        if _LEAVING <= dialogue.state < State.CLOSING:
            ending.hang_up(self)

    async def drained(self) -> None:
        """Wait while the client does not take what is sent."""
        if self.held & BLOCKED:
            self._drained = self.loop.create_future()
            await self._drained

    def go_on(self) -> None:
        """Send what the dialogue says, carry out what it waits for, and wait for the client."""
        dialogue = self.dialogue
        if dialogue.farewell is not None and dialogue.waiting is None and not self.held & BLOCKED:
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
        elif dialogue.framer is None and dialogue.chunks is None and not self.held:
            patience.wait_for_next(self)  # as mostly: it is answered all that it has said
        else:
            self._wait()

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
            patience.wait(self)

    def _next_turn(self) -> None:
        self.held &= ~TURN
        if self.gone or self.held & BLOCKED:
            return
        if self.kicked:
            ending.take_leave(self)
        else:
            self.dialogue.advance()
            self.go_on()
