"""Dialogue: one SMTP session without a socket, a loop or a clock: bytes in, replies out.

Its host (:class:`~smtpd_fork.smtp.connection.Connection`, or a test) feeds what the client sends to
:meth:`Dialogue.receive`, sends what is in :attr:`Dialogue.out`, and carries out what is in
:attr:`Dialogue.waiting`. A batch of pipelined commands is read, judged and answered in one call.

There are two ways from bytes to a reply, which lead to the same row: what nearly every client sends
is found by one search (:mod:`~smtpd_fork.dialogue.fast_path`), the rest goes through the framer.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import MISSING
from msgspec import Struct

from smtpd_fork.dialogue import client_log, handler_changes, held_input, memory, replies, strikes
from smtpd_fork.dialogue.commands import State
from smtpd_fork.dialogue.data import received
from smtpd_fork.dialogue.dispatch import act_on_line, perform
from smtpd_fork.dialogue.envelope import Envelope
from smtpd_fork.dialogue.fast_path import EVENTS_A_TURN, take_frequent
from smtpd_fork.dialogue.framer import CommandFault, Framer
from smtpd_fork.dialogue.mistakes import warn_of_mistake
from smtpd_fork.dialogue.rejections import note_rejection
from smtpd_fork.dialogue.reply import ends, sent
from smtpd_fork.dialogue.waiting import Ask, Failed

if TYPE_CHECKING:
    from collections.abc import Sequence

    import aiosmtpd.smtp

    from smtpd_fork.dialogue.body import Body
    from smtpd_fork.dialogue.command_table import Row, Rows
    from smtpd_fork.dialogue.content import Content
    from smtpd_fork.dialogue.framer import Chunk, Event
    from smtpd_fork.dialogue.replies import Text
    from smtpd_fork.dialogue.shared import Shared
    from smtpd_fork.dialogue.waiting import Result, Waiting

__all__ = ["Dialogue"]

log = logging.getLogger("smtpd_fork.session")

_HELLO, _READY, _GREETING = State.HELLO, State.READY, State.GREETING
_LEAVING, _DELIVERY, _EXCHANGE = State.LEAVING, State.DELIVERY, State.EXCHANGE
"""To compare with: an attribute of an Enum is slow to look up."""

_FOUR = ord("4")


class Dialogue(Struct, eq=False):
    """One session, from its first byte to its last reply.

    :param shared: what it has in common with others
    :param id: names it in the log, in ``Received:`` and in the reply to DATA
    :param host: runs it; None once it has ended
    """

    shared: Shared
    id: str
    host: Any
    state: State = _GREETING  # what the client may do next
    session: Any = None  # aiosmtpd.smtp.Session, from begin() on
    transaction: aiosmtpd.smtp.Envelope | None = None  # the envelope, if there is one
    row: Row = None  # type: ignore[assignment]  # of the command that is acted on; set below
    rows: Rows = None  # type: ignore[assignment]  # all of them, for this client now; set below
    line: bytes = b""  # the command that is acted on, without credentials
    by_handler: bool = False  # whether the reply that is put is a handler's
    facade: Any = None  # the session as handlers know it, once it was asked for
    out: bytes = b""  # replies that are to be sent
    waiting: Waiting | None = None  # what has to be carried out before anything else
    awaited: Any = None  # a future of the next line or message, in place of advance()
    farewell: bytes | None = None  # the reply that ends the session as soon as that can be
    framer: Framer | None = None  # what has been fed and not acted on, if there is any
    body: Body | None = None  # the message that is to come, while nothing of it has
    chunks: Content | None = None  # what BDAT has brought so far, in a sequence of chunks
    chunk_fault: Text | None = None  # why the chunks of this message are not wanted
    more: bool = False  # whether there is input to act on after other sessions' turn
    in_hand: bool = False  # whether a handler has a message; maybe longer than there is a client
    calls: dict[str, int] | None = None  # that are left, by aiosmtpd's command_call_limit
    messages: int = 0  # that were accepted so far
    accepted: int = 0  # recipients of an LMTP transaction that were answered 2yz
    became: list[Sequence[int]] | None = None  # indices of the addresses of each, unless one each
    events: int = 0  # commands and messages that were acted on
    begun: int = 0  # messages that were begun
    errors: int = 0  # see strikes.py for these
    rejects: int = 0
    noops: int = 0
    overshoot: int = 0
    auth_failures: int = 0
    charged: int = 0  # bytes in the budget
    envelope_bytes: int = 0  # about those of recipients
    tarpit: float = 0.0  # seconds by which each reply is delayed
    debug: bool = False  # whether each command is logged
    fast: bool = False  # whether the fast path may be taken
    may_send: frozenset[str] = frozenset()  # XCLIENT and XFORWARD, if the client is trusted

    def __post_init__(self) -> None:
        shared = self.shared
        self.row, self.rows = shared.connect_row, shared.open_rows
        self.debug = log.isEnabledFor(logging.DEBUG)
        self.fast = shared.fast and not self.debug

    # What it holds, what it counts, and what it writes to the log, have files of their own.
    keep, framed, forget_input = held_input.keep, held_input.framed, held_input.forget_input
    hand_over, next_event = held_input.hand_over, held_input.next_event
    count_error, count_noop = strikes.count_error, strikes.count_noop
    count_reject, nonsense = strikes.count_reject, strikes.nonsense
    place, set_rows = handler_changes.place, handler_changes.set_rows
    report, report_failure, who = client_log.report, client_log.report_failure, client_log.who

    # -- what is known of the client -----------------------------------------------------------

    @property
    def tls(self) -> bool:
        """Whether TLS is spoken."""
        return self.session is not None and self.session.ssl is not None

    @property
    def envelope(self) -> Any:
        """The mail transaction; made when it is first asked for."""
        if self.transaction is None:
            own = self.shared.own_envelope
            self.transaction = self.server._create_envelope() if own else Envelope()  # noqa: SLF001 - aiosmtpd's name
        return self.transaction

    @envelope.setter
    def envelope(self, envelope: aiosmtpd.smtp.Envelope | None) -> None:
        self.transaction = envelope

    @property
    def server(self) -> Any:
        """The session as handlers know it; made when it is first asked for."""
        if self.facade is None:
            self.facade = self.shared.cls.of(self.host)
        return self.facade

    @property
    def reading(self) -> Body | Chunk | None:
        """What is being read, if it is not commands."""
        if self.body is not None:
            return self.body
        return None if self.framer is None else self.framer.reading

    @property
    def pending(self) -> int:
        """Bytes that were fed and not acted on."""
        return 0 if self.framer is None else self.framer.pending

    # -- begin and end -------------------------------------------------------------------------

    def begin(self, session: aiosmtpd.smtp.Session) -> None:
        """Begin anew, as a connection does, and as it does under TLS (RFC 3207 4.2)."""
        again = self.state != _GREETING
        if again:
            self.reset()
            self.state = _HELLO
        self.session = session
        if again or self.shared.guarded:
            self.set_rows()

    def greet(self) -> None:
        """Send the greeting: the client may send commands."""
        self.state = _HELLO
        self.put(self.shared.greeting)
        self.place()

    def reset(self) -> None:
        """End the transaction: nothing of it is held any more, and nothing charged."""
        self.transaction = self.chunks = self.chunk_fault = self.became = None
        self.accepted = self.envelope_bytes = 0
        if self.charged:
            memory.charge(self)
        if self.state < _LEAVING and self.state != _GREETING:
            self.state = _READY if self.session and self.session.host_name else _HELLO
            if self.shared.own_envelope:
                self.place()

    def leave(self, *, interrupting: bool = False) -> None:
        """Say nothing more than there is to send, and act on nothing more.

        :param interrupting: the client does not know, and may be speaking
        """
        if self.state >= _LEAVING:
            return
        interrupting = interrupting or self.pending > 0
        self.forget_input()
        self.state = State.DISMISSED if interrupting else _LEAVING
        if self.waiting is None:
            self.reset()

    def end(self) -> None:
        """Take note that the connection is lost; a message that a handler has stays in its hand."""
        self.forget_input()
        self.out = b""
        self.state = State.GONE

    def answered(self) -> None:
        """Go on after what was waited for, whatever its result."""
        self.waiting = None
        self.in_hand = False
        if self.state >= _LEAVING:
            self.reset()
        elif self.state in (_DELIVERY, _EXCHANGE):
            self.state = _HELLO  # it ends with what was waited for
        self.place()

    # -- replies -------------------------------------------------------------------------------

    def put(self, reply: bytes, *, counted: bool = True, by_handler: bool = False) -> None:
        """Add a reply to those that are to be sent; 421 ends the session (RFC 5321 3.8).

        A refusal counts: no command that gets one can be repeated without end in one session.

        :param reply: with its CR LF
        :param counted: False for a refusal that is counted elsewhere
        :param by_handler: whether a handler, or a user's class, has worded it
        """
        if self.state >= _LEAVING:
            return
        if reply[0] < _FOUR:
            self.row.replies[reply[0]] += 1
        else:
            if ends(reply):
                reply = note_rejection(self, reply, by_handler=by_handler or self.by_handler)
            if reply.startswith(b"421"):
                self.out += reply
                self.leave(interrupting=True)
                return
            if counted and ends(reply) and self.count_reject():
                return
        self.out += reply

    def put_status(self, status: str) -> None:
        """Add a reply that a handler, or a user's class, has worded."""
        self.put(sent(status), by_handler=True)

    def say(self, text: Text) -> bytes:
        """Return a reply as it is sent."""
        return self.shared.worded(text)

    # -- input ---------------------------------------------------------------------------------

    def receive(self, data: bytes) -> bool:
        """Take what the client sends, and act on it as far as that goes without waiting.

        :returns: whether nothing is left to be done but to send the replies: the usual case
        """
        if self.framer is None and self.waiting is None:
            if self.facade is not None:
                self.place()  # a handler knows the session, and may have changed it
            if self.body is not None:
                if self.body.take_whole(data):
                    body, self.body, data = self.body, None, b""
                    self._act_on(body)
            elif self.fast and self.state < _GREETING:
                data = take_frequent(self, data)
            if not data:
                return (
                    self.waiting is None  # type: ignore[redundant-expr]  # a command may have set it
                    and self.state < _LEAVING
                    and self.farewell is None
                    and self.chunks is None
                    and not (self.charged or self.tarpit)
                )
        if self.state == _HELLO:
            warn_of_mistake(self, data)
        self.keep(data)
        if self.waiting is None:
            self.advance()
        else:
            self.hand_over()
        return False

    def advance(self) -> None:
        """Act on what has been received, as far as it goes without waiting."""
        turn, self.more = 0, False
        while self.waiting is None and self.state < _LEAVING:
            if self.farewell is not None and self.reading is None:
                self.out += self.farewell
                self.leave()
                return
            if (turn == EVENTS_A_TURN or (self.tarpit and self.out)) and self.pending:
                self.more = True
                return
            framer = self.framer
            event = None if framer is None else framer.next()
            if event is None:
                if framer is not None and framer.idle:
                    self.framer = None
                return
            self.events += 1
            self._act_on(event)
            turn += 1

    def _act_on(self, event: Event) -> None:
        try:
            if type(event) is bytes:
                result = act_on_line(self, event)
            elif type(event) is CommandFault:
                result = self.nonsense(replies.OF_COMMAND_FAULT[event])
            else:
                result = received(self, event)  # type: ignore[arg-type]  # a message: asked above
            self.act(result)
        except Exception as error:  # noqa: BLE001 - logged and answered by the host
            self.waiting = Failed(error)

    def act(self, result: Result) -> None:
        """Put a reply among those that are to be sent, or have something carried out first."""
        while result is not None:
            if type(result) is bytes:
                self.put(result)
                return
            if type(result) is not Ask or result.hook not in self.shared.at_once:
                self.waiting = result  # type: ignore[assignment]  # it is no bytes
                return
            # A task and its two turns of the loop cost as much as all the rest of a command.
            self.waiting, status = result, None
            try:
                status = self.host.ask_now(result)
            finally:
                self.waiting = status if type(status) is Ask else None
            if self.waiting is not None:
                return
            result = self.answer(result, status)
            self.in_hand = False
            self.place()
        if self.state >= _LEAVING and self.transaction is not None:
            self.reset()

    def answer(self, ask: Ask, status: Any) -> Result:
        """Act on what a hook has answered; return what is to be done next."""
        self.by_handler = status is not MISSING
        try:
            result = ask.then(status)
            if type(result) is not bytes:
                return result
            self.put(result)
        finally:
            self.by_handler = False
        return None

    def perform(self, name: str, argument: str | None) -> Result:
        """Carry out a built-in command, for a subclass that overrides it."""
        self.place()
        row = self.rows[name.encode()]
        return perform(self, row.inherited or row, argument)
