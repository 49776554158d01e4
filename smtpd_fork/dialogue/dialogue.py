"""Dialogue: an SMTP session without sockets, event loop or clock: bytes in, replies out.

Its host (:class:`~smtpd_fork.smtp.connection.Connection`, or a test) passes input to
:meth:`Dialogue.receive`, sends the bytes of :attr:`Dialogue.out`, and carries out the operation in
:attr:`Dialogue.waiting`. A batch of pipelined commands is parsed, checked and answered in one call.

Commands are parsed in two ways, with the same result: one search finds the commands of nearly all
clients (:mod:`~smtpd_fork.dialogue.fast_path`), and the framer handles all other input.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import MISSING
from msgspec import Struct

from smtpd_fork.dialogue import (
    client_log,
    error_limits,
    handler_changes,
    held_input,
    memory,
    replies,
)
from smtpd_fork.dialogue.commands import State
from smtpd_fork.dialogue.data import received
from smtpd_fork.dialogue.dispatch import act_on_line, perform
from smtpd_fork.dialogue.envelope import Envelope
from smtpd_fork.dialogue.fast_path import EVENTS_A_TURN, process_frequent
from smtpd_fork.dialogue.framer import CommandFault, Framer
from smtpd_fork.dialogue.rejections import note_rejection
from smtpd_fork.dialogue.reply import ends, reply_bytes
from smtpd_fork.dialogue.waiting import Ask, Failed
from smtpd_fork.dialogue.wrong_protocol import warn_of_wrong_protocol

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
"""Copies of states, as attributes of an Enum are slow to look up."""

_FOUR = ord("4")


class Dialogue(Struct, eq=False):
    """An SMTP session, from its beginning to the last reply.

    :param shared: values that all sessions of a server share
    :param id: the id of the session in the log, in ``Received:`` and in the reply to DATA
    :param host: the object that runs it; None after its end
    """

    shared: Shared
    id: str
    host: Any  # a Host (waiting.py)
    state: State = _GREETING  # what the client may do next
    session: Any = None  # aiosmtpd.smtp.Session, from begin() on
    transaction: aiosmtpd.smtp.Envelope | None = None  # the envelope, if there is one
    row: Row = None  # type: ignore[assignment]  # the row of the current command; set below
    rows: Rows = None  # type: ignore[assignment]  # the present table of commands; set below
    line: bytes = b""  # the current command, without credentials
    by_handler: bool = False  # whether the current reply is from a handler
    facade: Any = None  # the session object for handlers, once created
    out: bytes = b""  # replies to send
    waiting: Waiting | None = None  # the operation that must be carried out next
    awaited: Any = None  # a future of the next line or message, instead of advance()
    last_reply: bytes | None = None  # the reply that ends the session as soon as possible
    framer: Framer | None = None  # unprocessed input, if there is any
    body: Body | None = None  # the expected message, before its first byte
    chunks: Content | None = None  # the chunks of the current message so far
    chunk_fault: Text | None = None  # the reply to chunks that are rejected
    more: bool = False  # whether input remains to be processed after other sessions
    handler_busy: bool = False  # whether a handler has a message; perhaps longer than the session
    calls: dict[str, int] | None = None  # calls left by aiosmtpd's command_call_limit
    messages: int = 0  # accepted messages
    accepted: int = 0  # accepted recipients of an LMTP transaction
    address_indices: list[Sequence[int]] | None = None  # of each recipient; None: one each
    events: int = 0  # processed commands and messages
    begun: int = 0  # begun messages
    errors: int = 0  # this and the next three: see error_limits.py
    rejects: int = 0
    noops: int = 0
    overshoot: int = 0
    auth_failures: int = 0
    charged: int = 0  # bytes charged to the budget
    envelope_bytes: int = 0  # approximate bytes of the recipients
    tarpit: float = 0.0  # seconds by which each reply is delayed
    debug: bool = False  # whether each command is logged
    fast: bool = False  # whether the fast path may be taken
    may_send: frozenset[str] = frozenset()  # XCLIENT and XFORWARD, if the client is trusted

    def __post_init__(self) -> None:
        shared = self.shared
        self.row, self.rows = shared.connect_row, shared.open_rows
        self.debug = log.isEnabledFor(logging.DEBUG)
        self.fast = shared.fast and not self.debug

    # These methods are in other modules, to keep this one short.
    keep, framed, forget_input = held_input.keep, held_input.framed, held_input.forget_input
    pass_event, next_event = held_input.pass_event, held_input.next_event
    count_error, count_noop = error_limits.count_error, error_limits.count_noop
    count_reject, invalid_command = error_limits.count_reject, error_limits.invalid_command
    update_state, set_rows = handler_changes.update_state, handler_changes.set_rows
    report, report_failure = client_log.report, client_log.report_failure
    log_fields = client_log.log_fields

    # -- the client ----------------------------------------------------------------------------

    @property
    def tls(self) -> bool:
        """Whether TLS is active."""
        return self.session is not None and self.session.ssl is not None

    @property
    def envelope(self) -> Any:
        """The mail transaction; created at the first access."""
        if self.transaction is None:
            own = self.shared.overrides_envelope
            self.transaction = self.server._create_envelope() if own else Envelope()  # noqa: SLF001 - aiosmtpd's name
        return self.transaction

    @envelope.setter
    def envelope(self, envelope: aiosmtpd.smtp.Envelope | None) -> None:
        self.transaction = envelope

    @property
    def server(self) -> Any:
        """The session object for handlers; created at the first access."""
        if self.facade is None:
            self.facade = self.shared.cls.of(self.host)
        return self.facade

    @property
    def reading(self) -> Body | Chunk | None:
        """The message or chunk that is being read; None while commands are read."""
        if self.body is not None:
            return self.body
        return None if self.framer is None else self.framer.reading

    @property
    def pending(self) -> int:
        """Bytes of input that were not processed yet."""
        return 0 if self.framer is None else self.framer.pending

    # -- begin and end -------------------------------------------------------------------------

    def begin(self, session: aiosmtpd.smtp.Session) -> None:
        """Begin a session, on a new connection or after STARTTLS (RFC 3207 4.2)."""
        again = self.state != _GREETING
        if again:
            self.reset()
            self.state = _HELLO
        self.session = session
        if again or self.shared.guarded:
            self.set_rows()

    def greet(self) -> None:
        """Send the greeting, and expect commands."""
        self.state = _HELLO
        self.put(self.shared.greeting)
        self.update_state()

    def reset(self) -> None:
        """End the transaction, and release its memory."""
        self.transaction = self.chunks = self.chunk_fault = self.address_indices = None
        self.accepted = self.envelope_bytes = 0
        if self.charged:
            memory.charge(self)
        if self.state < _LEAVING and self.state != _GREETING:
            self.state = _READY if self.session and self.session.host_name else _HELLO
            if self.shared.overrides_envelope:
                self.update_state()

    def leave(self, *, interrupting: bool = False) -> None:
        """End the session: no more replies are added, and no more input is processed.

        :param interrupting: the client does not know that the session ends, and may still send
        """
        if self.state >= _LEAVING:
            return
        interrupting = interrupting or self.pending > 0
        self.forget_input()
        self.state = State.DISMISSED if interrupting else _LEAVING
        if self.waiting is None:
            self.reset()

    def end(self) -> None:
        """Handle the loss of the connection; a handler may continue to process a message."""
        self.forget_input()
        self.out = b""
        self.state = State.GONE

    def answered(self) -> None:
        """Continue after the end of :attr:`waiting`, whatever its result was."""
        self.waiting = None
        self.handler_busy = False
        if self.state >= _LEAVING:
            self.reset()
        elif self.state in (_DELIVERY, _EXCHANGE):
            self.state = _HELLO  # this state ends with the operation
        self.update_state()

    # -- replies -------------------------------------------------------------------------------

    def put(self, reply: bytes, *, counted: bool = True, by_handler: bool = False) -> None:
        """Add a reply to the output; 421 ends the session (RFC 5321 3.8).

        Rejections are counted, so that no rejected command can be repeated without limit.

        :param reply: the bytes of a reply, with its CR LF
        :param counted: False if a rejection is counted elsewhere
        :param by_handler: whether the reply is from a handler or a user's subclass
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
        """Add a reply from a handler or a user's subclass."""
        self.put(reply_bytes(status), by_handler=True)

    def encode(self, text: Text) -> bytes:
        """Return the bytes of a reply."""
        return self.shared.encode(text)

    # -- input ---------------------------------------------------------------------------------

    def receive(self, data: bytes) -> bool:
        """Process input from the client, as far as possible without waiting.

        :returns: whether only the replies must be sent now, which is the usual case
        """
        if self.framer is None and self.waiting is None:
            if self.facade is not None:
                self.update_state()  # a handler may have changed the session
            if self.body is not None:
                if self.body.add_whole(data):
                    body, self.body, data = self.body, None, b""
                    self._act_on(body)
            elif self.fast and self.state < _GREETING:
                data = process_frequent(self, data)
            if not data:
                return (
                    self.waiting is None  # type: ignore[redundant-expr]  # a command may have set it
                    and self.state < _LEAVING
                    and self.last_reply is None
                    and self.chunks is None
                    and not (self.charged or self.tarpit)
                )
        if self.state == _HELLO:
            warn_of_wrong_protocol(self, data)
        self.keep(data)
        if self.waiting is None:
            self.advance()
        else:
            self.pass_event()
        return False

    def advance(self) -> None:
        """Process stored input, as far as possible without waiting."""
        turn, self.more = 0, False
        while self.waiting is None and self.state < _LEAVING:
            if self.last_reply is not None and self.reading is None:
                self.out += self.last_reply
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
                result = self.invalid_command(replies.COMMAND_FAULT_REPLIES[event])
            else:
                result = received(self, event)  # type: ignore[arg-type]  # a message (checked above)
            self.act(result)
        except Exception as error:  # noqa: BLE001 - logged and answered by the host
            self.waiting = Failed(error)

    def act(self, result: Result) -> None:
        """Add a reply to the output, or set the operation to wait for."""
        while result is not None:
            if type(result) is bytes:
                self.put(result)
                return
            if type(result) is not Ask or result.hook not in self.shared.at_once:
                self.waiting = result  # type: ignore[assignment]  # not bytes
                return
            # A task, with two iterations of the loop, costs as much as the rest of a command.
            self.waiting, status = result, None
            try:
                status = self.host.ask_now(result)
            finally:
                self.waiting = status if type(status) is Ask else None
            if self.waiting is not None:
                return
            result = self.answer(result, status)
            self.handler_busy = False
            self.update_state()
        if self.state >= _LEAVING and self.transaction is not None:
            self.reset()

    def answer(self, ask: Ask, status: Any) -> Result:
        """Process the answer of a hook; return the next result."""
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
        """Carry out a built-in command that a user's subclass overrides."""
        self.update_state()
        row = self.rows[name.encode()]
        return perform(self, row.inherited or row, argument)
