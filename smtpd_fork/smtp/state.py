"""State: what a session has of its own, what it sends, and what it holds in memory."""

from __future__ import annotations

import asyncio
import logging
import math
from sys import getsizeof
from typing import TYPE_CHECKING, Any, Protocol

import aiosmtpd.smtp

from smtpd_fork.gate import ClientLine
from smtpd_fork.net import describe
from smtpd_fork.smtp.budget import ALLOWANCE
from smtpd_fork.smtp.envelope import Envelope
from smtpd_fork.smtp.framer import Chunk, Framer
from smtpd_fork.smtp.reply import sendable
from smtpd_fork.smtp.session import Session, new_session_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextvars import Context

    from smtpd_fork.gate import Refusal
    from smtpd_fork.net import Peer
    from smtpd_fork.smtp.body import Body
    from smtpd_fork.smtp.content import Content
    from smtpd_fork.smtp.framer import Event
    from smtpd_fork.smtp.setup import Setup
    from smtpd_fork.smtp.sweep import Sweep

__all__ = ["State", "log"]

log = logging.getLogger("smtpd_fork.session")


class Handshakes(Protocol):
    """Knows whose TLS handshakes fail too often, and how long one may take."""

    @property
    def shorten(self) -> Callable[[float], float]:
        """Returns a time limit as it is now."""

    def begin_handshake(self, protocol: Any) -> Refusal | None:
        """Return why a session is not to begin one."""

    def end_handshake(self, protocol: Any) -> None:
        """Take note that one has succeeded."""


def _ends(reply: bytes) -> bool:
    """Whether a reply ends with this: what is pushed may be its first lines."""
    return reply[reply.rfind(b"\n") + 4 :][:1] != b"-"


class State(aiosmtpd.smtp.SMTP):
    """A session at rest; :class:`smtpd_fork.smtp.engine.Engine` moves it."""

    # Set by the constructor of SMTP; here for whoever reads on.
    _setup: Setup
    _sweep: Sweep
    event_handler: Any
    hostname: str
    loop: asyncio.AbstractEventLoop

    # What is as it is for almost every session stands here, once: an instance's own attributes
    # cost an idle session more memory than all else.
    transport: Any = None
    line_length_limit: int = 0
    """Octets of a line of a message; 0 is no limit. aiosmtpd's 1001 turned real mail away."""
    _envelope: aiosmtpd.smtp.Envelope | None = None
    _task: asyncio.Task[None] | None = None
    _tls_protocol: Any = None
    _tls_handshake_okay = True
    _ended: asyncio.Future[None] | None = None
    _drained: asyncio.Future[None] | None = None
    _awaited_line: asyncio.Future[Event] | None = None
    _lost = False
    _closing = False
    _eof = False
    _in_hook = False
    _hook_expired = False
    _message_in_hand = False
    _shaking_hands = False
    _shutting_down = False
    _kicked = b""
    """The last word, if an administrator has ended the session."""
    _blocked = False
    _reading_paused = False
    _turn_pending = False
    _answered = False
    proxied: Any = None
    """What a PROXY header said that was read before the session (aiosmtpd's ProxyData)."""
    handshakes: Handshakes | None = None
    """Whom to ask before a TLS handshake."""
    host_name_dns: str | None = None
    """The client's name by the DNS, if it was asked for and leads back."""
    messages: int = 0
    """Messages that were accepted so far."""
    _errors = 0
    _rejects = 0
    """Commands that were refused so far, beside those that count as errors."""
    _charged = 0
    idle_since = 0.0
    """Since when the session waits for its client: for a command, or for more of a message."""
    _steps = (-1, 0)
    _stuck_since = 0.0
    """Bytes that are charged to the budget."""
    _envelope_bytes = 0
    """About what the recipients take; see :mod:`smtpd_fork.smtp.envelope`."""
    _pace = (0.0, 0)
    """When the message in hand was last seen to come fast enough, and its bytes then."""
    _command_began = 0.0
    """When the first byte of a command came whose end has not; 0 without one."""
    _at_rest = False
    _body: Body | None = None
    _chunks: Content | None = None
    """What BDAT has brought so far; None outside of a sequence of chunks."""
    _chunk_fault: tuple[int, str, str] | None = None
    """Why the chunks of this message are not wanted."""
    _loud = False
    _ends_at = math.inf
    _context: Context | None = None
    deadline = 0.0

    def _begin(self, peer: Peer, on_close: Callable[[Any], None] | None) -> None:
        """Set up what every session has of its own."""
        self.session = None
        self._session_id = new_session_id()
        self._peer = peer
        self._on_close = on_close
        self._framer = Framer(self._setup.bare)
        self._out: list[bytes] = []

    @property
    def id(self) -> str:
        """Names the session in the logs, in ``Received:`` and in the reply to DATA."""
        return self._session_id

    def rename(self, name: str) -> None:
        """Go on under the id by which the client was known before it had a session."""
        self._session_id = name

    @property
    def peer(self) -> Peer:
        """The client, as accept(2) or a PROXY header named it."""
        return self._peer

    @property
    def helo(self) -> str:
        """The name that the client gave itself, as it came; empty if it gave none."""
        return getattr(self.session, "host_name", None) or ""

    @property
    def envelope(self) -> aiosmtpd.smtp.Envelope | None:
        """The mail transaction; made when it is first asked for."""
        if self._envelope is None:
            self._envelope = self._create_envelope()
        return self._envelope

    @envelope.setter
    def envelope(self, envelope: aiosmtpd.smtp.Envelope | None) -> None:
        self._envelope = envelope

    def _who(self) -> dict[str, str]:
        """Return the fields of a log entry about this session (see smtpd_fork.observe.logs)."""
        return {"session": self._session_id, "client": describe(self._known_peer())}

    def _known_peer(self) -> Peer:
        peer: Any = self._peer
        if peer is not None and not isinstance(peer, (str, tuple)):
            peer = str(peer)  # a transport of somebody's own: logging must not fail over it
        return peer  # type: ignore[no-any-return]  # asked for above

    def _report(
        self,
        level: int,
        what: str,
        reason: str = "",
        *,
        kind: str = "",
        error: BaseException | None = None,
    ) -> None:
        """Log a line about this client: ``[ID] CLIENT: WHAT: REASON``.

        If a client causes many, in this session or in others, the first is written at once, and the
        others become a line with a count every few seconds.

        :param level: logging's
        :param what: what happened; lines are gathered by it
        :param reason: why; may be anything
        :param kind: lines with the same *what* that are gathered apart
        :param error: its traceback goes below the line
        """
        if log.isEnabledFor(level):
            peer, session = self._known_peer(), self._session_id
            line = ClientLine.of(log, level, peer, what, reason, kind=kind, session=session)
            self._setup.reporter.note(line, error=error)

    def _report_failure(self, what: str, error: BaseException) -> None:
        """Log what a handler raised; errors from different lines of code are gathered apart."""
        place, traceback = "", error.__traceback__
        while traceback is not None:
            place = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
            traceback = traceback.tb_next
        kind = f"{type(error).__name__} {place}"
        self._report(logging.ERROR, what, kind=kind, error=error)

    def __repr__(self) -> str:
        return f"<SMTP {self._session_id} {describe(self._peer)}>"

    def _create_session(self) -> aiosmtpd.smtp.Session:
        return Session(self.loop, self._session_id)

    def _create_envelope(self) -> aiosmtpd.smtp.Envelope:
        return Envelope()

    def _set_post_data_state(self) -> None:
        self._envelope = None

    def _set_rset_state(self) -> None:
        """End the transaction: nothing of it is held any more, and nothing charged."""
        self._set_post_data_state()
        self._envelope_bytes = 0
        if self._charged:
            self._charge()

    # -- output --------------------------------------------------------------------------------

    def _leave_rest(self) -> None:
        """Have whatever comes next take the long way (see :mod:`smtpd_fork.smtp.short`)."""
        self._at_rest = False
        self._body = None

    def _put(self, status: str | bytes, *, counted: bool = True) -> None:
        """Add a reply to the batch; 421 closes the connection after it (RFC 5321 3.8).

        A refusal counts: no command that gets one can be repeated without end in one session.

        :param counted: False for a refusal that is counted elsewhere
        """
        reply = status if isinstance(status, bytes) else status.encode("utf-8", "replace")
        last = reply.startswith(b"421")
        if counted and reply >= b"4" and not last and _ends(reply) and self._count_reject():
            return
        if not self._closing:
            self._out.append(reply + b"\r\n")
        if last:
            self._close(interrupting=True)

    def _put_verdict(self, replies: Sequence[str]) -> None:
        """Add the replies to one message; several recipients' refusals of it count as one.

        None of them gives way to 421: some recipient may have the message.
        """
        for reply in replies:
            self._put(reply, counted=False)
        if min(replies) >= "4":
            self._count_reject()

    def _count_error(self) -> bool:
        """Count a command that is of no use; past the limit the session is over, and this True."""
        self._errors += 1
        return self._errors > self._setup.limits.errors and self._end_for("too many errors")

    def _count_reject(self) -> bool:
        """Count a refused command; past the limit the session is over, and this True."""
        self._rejects += 1
        return self._rejects > self._setup.limits.rejects and self._end_for(
            "too many refused commands"
        )

    def _end_for(self, reason: str) -> bool:
        """End the session; return True."""
        if not self._closing:
            self._report(logging.INFO, reason)
            text = f"{reason[0].upper()}{reason[1:]}, closing connection"
            self._put(f"421 4.7.0 {self.hostname} {text}")
        return True

    def _put_raw(self, reply: bytes) -> None:
        if not self._closing:
            self._out.append(reply)

    def _ok(self, enhanced: str) -> None:
        """Add the reply that is most frequent of all."""
        self._out.append(self._setup.ok[enhanced])

    def _say(self, code: int, enhanced: str, text: str, *, counted: bool = True) -> None:
        """Add a reply, with its enhanced status code (RFC 2034) where those are spoken."""
        self._put(self._worded(code, enhanced, text), counted=counted)

    def _worded(self, code: int, enhanced: str, text: str) -> str:
        return f"{code} {enhanced} {text}" if self._setup.enhanced else f"{code} {text}"

    def _flush(self) -> None:
        """Send the batch, in one write."""
        replies = self._out
        if not replies or self.transport is None:
            return
        out = replies[0] if len(replies) == 1 else b"".join(replies)
        replies.clear()
        try:
            self.transport.write(out)
        except RuntimeError:
            # What uvloop raises.
            text = "[%s] a handler has closed the transport"
            log.debug(text, self._session_id, extra=self._who())

    async def push(self, status: str | bytes) -> None:
        """Send a reply, and wait while the client does not take it.

        :param status: a reply, or the first lines of one (``250-...``), without the last CR LF
        :raises ValueError: it is neither
        """
        if self._closing:
            raise asyncio.CancelledError  # there is nobody to answer
        reply = sendable(status)
        last = reply.rpartition("\r\n")[2]
        self._answered = last[0] != "3" and last[3:4] != "-"
        self._put(reply)
        self._flush()
        if self._blocked:
            self._drained = self.loop.create_future()
            await self._drained

    def pause_writing(self) -> None:
        """Act on no more commands while the client does not read (asyncio.BaseProtocol)."""
        self._blocked = True
        self._leave_rest()
        self._pause_reading()
        self._charge()

    def resume_writing(self) -> None:
        """Go on (asyncio.BaseProtocol)."""
        self._blocked = False
        if self._charged:
            self._charge()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self._task is None and not self._turn_pending and not self._lost:
            self._advance()

    def _close(self, *, interrupting: bool = False) -> None:
        raise NotImplementedError

    def give_way(self, held: int) -> bool:
        """End, as memory is short (see :mod:`smtpd_fork.smtp.budget`)."""
        raise NotImplementedError

    def _pause_reading(self) -> None:
        raise NotImplementedError

    def _advance(self) -> None:
        raise NotImplementedError

    # -- memory --------------------------------------------------------------------------------

    def _charge(self, message: Body | Chunk | None = None) -> None:
        """Charge all that is held for the client, beyond what each session may hold.

        Past the budget a message that is not complete is no longer held.

        :param message: that has just been completed; default: the one that is to be, if any
        """
        held = self._held(message) - ALLOWANCE
        if held <= 0 and not self._charged:
            return  # as mostly
        self._charged = max(held, 0)
        if self._setup.budget.hold(self, self._charged):
            return
        content = message or self._framer.reading or self._chunks
        if content is not None and content.held:
            self._report(logging.INFO, "no memory for the message")
            content.drop()
            self._charge(message)

    def _held(self, message: Body | Chunk | None = None) -> int:
        """Return about how many bytes are held for the client.

        What has a small bound of its own is not in it: names, one command, the responses of AUTH.
        """
        held = self._envelope_bytes + self._framer.held
        content = message or self._framer.reading or self._chunks
        if content is not None:
            held += content.held
        if self._message_in_hand and self._envelope is not None:
            text, original = self._envelope.content, self._envelope.original_content
            held += len(original or b"") + (getsizeof(text) if text is not original else 0)
        if self._blocked and self.transport is not None:
            held += self.transport.get_write_buffer_size()
        return held
