"""Engine: a session's life, its wire, its time, and the way from an event to a reply.

Commands are plain functions where nobody has to be waited for, and that is most of them: a batch of
pipelined commands is read, judged and answered in one turn with one write. What waits is a
coroutine (see :mod:`~smtpd_fork.smtp.work`).

The laws:

- :meth:`Engine.connection_lost` runs once for every connection, and ``on_close`` is called there
  and nowhere else;
- every state has a deadline, and every deadline ends in a reply, a close or a cut;
- no byte moves a deadline: completing a command does, or a message that comes fast enough;
- what is held for a client is bounded: input while busy, output while it does not read, messages.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, cast

from aiosmtpd.smtp import MISSING

from smtpd_fork.gate.verdict import reply_line
from smtpd_fork.net import plain_peer
from smtpd_fork.smtp.ending import LINGER_SECONDS, Ending
from smtpd_fork.smtp.framer import Chunk, CommandFault
from smtpd_fork.smtp.reply import answer_of
from smtpd_fork.smtp.session import Session

if TYPE_CHECKING:
    from smtpd_fork.smtp.body import Body
    from smtpd_fork.smtp.framer import Event
    from smtpd_fork.smtp.work import Waiting

__all__ = ["EVENTS_A_TURN", "HELD_INPUT", "Engine"]

log = logging.getLogger("smtpd_fork.session")

PACE_SECONDS = 60.0
"""How long at least the rate of a message is taken over: neither a slow start nor a pause is an
attack. It is not taken over all of the message: a client that has sent much could stop for long."""

COMMAND_SECONDS = 60.0
"""Time for a command from its first byte to its end, if ``--timeout`` is not shorter: nginx has
as much for all headers of a request (client_header_timeout). Postfix also gives a command one time,
not one for each read (smtpd_per_request_deadline)."""

EVENTS_A_TURN = 64
"""Pipelined commands that are answered before other sessions have their turn: about 1 ms."""

HELD_INPUT = 64 * 1024
"""Bytes that are read ahead while a handler is busy; past it the client waits in the kernel."""

NOT_NOW = "421 4.3.0 Local error, try again later"

_TLS_FACTS = ("sslcontext", "ssl_object", "peercert", "cipher", "compression")


class Engine(Ending):
    """What all commands stand on. See :class:`smtpd_fork.smtp.SMTP`, which has them."""

    # -- life ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the session; under TLS after STARTTLS begin anew (asyncio.BaseProtocol).

        A user's subclass may override it, and call super()'s, as with aiosmtpd.
        """
        if self.session is not None:
            self.transport = transport
            self._reading_paused = False
            self._new_session(transport)
            self._use_tls(transport)
            return
        stream = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        get_protocol = getattr(stream, "get_protocol", None)
        if get_protocol is not None and get_protocol() is self:
            stream.set_protocol(self._setup.wire(self))  # the loop was given the session itself
        self._begin_on(transport)

    def _begin_on(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        limits = self._setup.limits
        now = self.loop.time()
        if limits.session_seconds:
            self._ends_at = now + limits.session_seconds
        self._sweep.watch(self)
        self._new_session(transport)
        if transport.get_extra_info("sslcontext") is not None:
            self._use_tls(transport)  # from the first byte: STARTTLS is not offered
        self.idle_since = now
        self.deadline = self._soonest(now + limits.command_seconds)
        waiting = self._opening()
        if waiting is not None:
            self._start(waiting)
        elif not self._closing:
            self._at_rest = self._may_rest()
        self._flush()

    def _opening(self) -> Waiting | None:
        """Greet, once whoever has to be asked has been."""
        if self._shutting_down:
            self._put_raw(self._goodbye())
            self._close()
            return None
        if "CONNECT" in self._setup.hooks:
            return self._ask_connect()
        self._greet()
        return None

    def _greet(self) -> None:
        self._put(f"220 {self.hostname} {self.__ident__}")

    async def _ask_connect(self) -> None:
        try:
            answer = await self._setup.hooks["CONNECT"](self, self.session)
            status = answer_of("CONNECT", answer)
        except BaseException as error:
            if self._is_end(error):
                raise
            self._report_failure("handle_CONNECT failed", error)
            status = NOT_NOW
        if status is MISSING or status.startswith("2"):
            self._greet()
        else:
            self._put_raw(status.encode("utf-8", "replace") + b"\r\n")
            self._close()  # it has not spoken, or what it said is held here

    def _new_session(self, transport: asyncio.BaseTransport) -> None:
        """Begin anew, as a connection does, and as it does under TLS (RFC 3207 4.2)."""
        proxy_data = self.session.proxy_data if self.session is not None else self.proxied
        if self._peer is None:
            self._peer = transport.get_extra_info("peername")
        self._set_rset_state()
        session = self._create_session()
        session.peer = plain_peer(self._peer)  # type: ignore[assignment]  # aiosmtpd's hint
        session.proxy_data = proxy_data
        if isinstance(session, Session):
            session._transport = transport  # noqa: SLF001 - of this floor
            session.lmtp = self._setup.lmtp
            if self.host_name_dns is not None:
                session.host_name_dns = self.host_name_dns
        self.session = session
        self._loud = log.isEnabledFor(logging.DEBUG)
        if self._loud:  # _who() costs, and mostly for nobody
            who = self._who()
            log.debug("[%s] connected: %s", self._session_id, who["client"], extra=who)

    def _use_tls(self, transport: asyncio.BaseTransport) -> None:
        self._setup.tally.tls_done += 1
        if self.handshakes is not None:
            self.handshakes.end_handshake(self)
        assert self.session is not None
        self.session.ssl = {fact: transport.get_extra_info(fact) for fact in _TLS_FACTS}
        # aiosmtpd, and its users, ask whether this attribute is there. Not the transport: it refers
        # to this session for as long as it is kept.
        self._tls_protocol = self.session.ssl["ssl_object"]

    def connection_lost(self, error: Exception | None) -> None:
        """End the session, once (asyncio.BaseProtocol)."""
        if self._lost:
            return
        self._lost = self._closing = True
        self._leave_rest()
        self.transport = None
        if self._loud:
            log.debug("[%s] connection closed", self._session_id, extra=self._who())
        try:
            self._sweep.forget(self)
            self._forget_input()
            self._out.clear()
            if self._charged and self._task is None:
                self._set_rset_state()
            if self._task is not None or "DISCONNECT" in self._setup.hooks:
                self._end_task()
            else:
                self._let_go()
        finally:
            if self._on_close is not None:
                self._on_close(self)

    def _end_task(self) -> None:
        """Have whatever still runs end, and the handler told of the end."""
        if self._task is None:
            self._task = self._farewell_task()
            return
        for waiter in (self._drained, self._awaited_line):
            if waiter is not None and not waiter.done():
                waiter.cancel()
        if not self._message_in_hand:
            # With a message in hand it finishes, and its reply goes nowhere.
            self._task.cancel()

    @property
    def began(self) -> bool:
        """Whether the connection was made."""
        return self.session is not None

    @property
    def tls(self) -> bool:
        """Whether TLS is spoken."""
        return self._tls_protocol is not None

    @property
    def phase(self) -> str:
        """What it does now: see :class:`smtpd_fork.gate.Entry`."""
        if not self.began or self._shaking_hands:
            return "handshake"
        if self._closing:
            return "closing"
        if self._task is not None and self._awaited_line is None:
            return "handler"
        return "command" if self._framer.reading is None else "data"

    def stuck_since(self) -> float:
        """Return since when its client has got no further; asked only while slots are short.

        Further is: TLS, a name, authentication, a sender, twice as many recipients, each of them
        once until a message is accepted.
        """
        session, envelope = self.session, self._envelope
        assert session is not None
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

    # -- input ---------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Take bytes (asyncio.Protocol)."""
        if self._at_rest or self._body is not None:
            data = self._short(data)
            if not data:
                return
        if self._awaited_line is not None or self._closing:
            self._feed_aside(data)
            return
        self._leave_rest()
        self._framer.feed(data)
        if self._task is None and not self._turn_pending:
            self._advance()
            return
        self._flush()
        if self._framer.pending > HELD_INPUT:
            self._pause_reading()
            self._charge()

    def _short(self, data: bytes) -> bytes:
        """Act on what mostly comes; return what has to take the long way."""
        raise NotImplementedError

    def _may_rest(self) -> bool:
        """Whether what comes next may take the short way."""
        raise NotImplementedError

    def _feed_aside(self, data: bytes) -> None:
        """Take bytes that are no command: the answer to a challenge, or nobody's any more."""
        if self._closing:
            return
        self._framer.feed(data)
        self._answer_awaited()

    def eof_received(self) -> bool | None:
        """Take the end of input; what was complete is still answered (asyncio.Protocol)."""
        self._eof = True
        self._leave_rest()
        if self._awaited_line is not None and not self._awaited_line.done():
            self._awaited_line.cancel()
        if self._task is None and not self._turn_pending:
            self._advance()
        # A TLS transport cannot stay half open, and one that is closing need not.
        return self._tls_protocol is None and not self._closing

    def _pause_reading(self) -> None:
        if not self._reading_paused and self.transport is not None:
            self._reading_paused = True
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused and self.transport is not None and not self._closing:
            self._reading_paused = False
            self.transport.resume_reading()

    def _advance(self) -> None:
        """Act on what has been received, as far as it goes without waiting."""
        framer = self._framer
        turn = 0
        try:
            while self._task is None and not self._closing and not self._blocked:
                if self._shutting_down and framer.reading is None:
                    self._put_raw(self._goodbye())
                    self._close()
                    break
                event = framer.next()
                if event is None:
                    self._await_more()
                    break
                if self._command_began:
                    self._command_began = 0.0
                waiting = self._command(event) if type(event) is bytes else self._other(event)
                if waiting is not None:
                    self._start(waiting)
                turn += 1
                if turn == EVENTS_A_TURN and framer.pending:
                    self._take_turns()
                    break
        except Exception as error:  # noqa: BLE001 - logged and answered there
            self._start(self._fail(error))
        if self._out:
            self._flush()

    def _take_turns(self) -> None:
        """Let other sessions have their turn, and go on after them."""
        self._turn_pending = True
        self._pause_reading()
        self.loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._turn_pending = False
        if self._kicked:
            self._take_leave()
        elif not self._lost:
            self._advance()

    async def _next_event(self) -> Event:
        """Return what the client sends next: a line, or the message that is to come."""
        self._awaited_line = self.loop.create_future()
        try:
            if self._eof or self._closing:
                self._awaited_line.cancel()
            self._answer_awaited()
            self._resume_reading()
            return await self._awaited_line
        except asyncio.CancelledError:
            if self._eof:
                self._close()  # so that it passes for the session's end, as it is
            raise
        finally:
            self._awaited_line = None

    def _answer_awaited(self) -> None:
        """Hand over what was received, if it is complete, to the task that waits for it."""
        waiter = self._awaited_line
        if waiter is None or waiter.done():
            return
        event = self._framer.next()
        if event is not None:
            waiter.set_result(event)
        elif self._framer.reading is not None:
            self._await_more()

    def _await_more(self) -> None:
        """There is no event: wait for the client, or end if nothing more can come."""
        if self._eof:
            self._close()
            return
        self._resume_reading()
        reading = self._framer.reading
        if reading is None:
            self._await_command()
            return
        limits = self._setup.limits
        self.idle_since = now = self.loop.time()
        self.deadline = self._soonest(now + limits.data_seconds)
        self._charge(reading)
        self._see_pace(now, reading.size)

    def _see_pace(self, now: float, came: int) -> None:
        """End a session whose message has come too slowly, by what the last minute brought."""
        since, before = self._pace
        seconds = now - since
        if seconds < PACE_SECONDS:
            return
        self._pace = now, came
        if came - before < seconds * self._setup.limits.data_rate:
            self._report(logging.INFO, "the message comes too slowly")
            self._time_out()

    def _await_command(self) -> None:
        """Wait for the next command, or for the rest of one that has begun."""
        now = self.loop.time()
        seconds = self._setup.limits.command_seconds
        if self._charged:
            self._charge()
        if self._chunks is not None:
            seconds = min(seconds, self._setup.limits.data_seconds)
            self._see_pace(now, self._chunks.size)
        if self._framer.idle:
            self._at_rest = self._chunks is None and self._may_rest()
            self.idle_since = now
            self.deadline = self._soonest(now + seconds)
        elif not self._command_began:
            self._command_began = self.idle_since = now
            self.deadline = self._soonest(now + min(seconds, COMMAND_SECONDS))

    def _soonest(self, deadline: float) -> float:
        """Return *deadline*, or the session's own, whichever comes first."""
        return min(self._ends_at, deadline)

    def _other(self, event: Event) -> Waiting | None:
        """Act on an event that is no command."""
        if isinstance(event, CommandFault):
            return self._command_fault(event)
        return self._received(cast("Body | Chunk", event))

    def _command(self, line: bytes) -> Waiting | None:
        raise NotImplementedError

    def _command_fault(self, fault: CommandFault) -> Waiting | None:
        raise NotImplementedError

    def _received(self, message: Body | Chunk) -> Waiting | None:
        raise NotImplementedError

    # -- time ----------------------------------------------------------------------------------

    def expired(self, now: float) -> None:
        """Act on the deadline that has passed."""
        if self._closing or self.transport is None:
            self.abort()
            return
        if self._hook_expired:
            self.cut()  # it was cancelled, and takes no notice
            return
        if self._in_hook:
            self._report(logging.WARNING, "a handler took too long, the client gets 451")
            self._hook_expired = True
            self.deadline = now + LINGER_SECONDS
            if self._task is not None:
                self._task.cancel()
            return
        self._time_out()

    def _time_out(self) -> None:
        self._report(logging.INFO, "timeout")
        self._out.clear()
        self._put_raw(reply_line(421, "4.4.2", self.hostname, "Timeout, closing connection"))
        self._close()
        if self._task is not None:
            self._task.cancel()
