"""Conversation: the milter protocol on one connection. Sans-io: no socket, no clock.

A conversation begins with the negotiation of options. Then events are sent, in transactions; each
transaction ends with a verdict. A milter answers each event, except kinds of events that it has
negotiated not to answer. Answers arrive in the order of the events, so that several events may be
sent together. :attr:`Conversation.answers` has the valid answers; any other answer is a protocol
error, which ends the conversation, and the milter counts as down.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, ClassVar

from smtpd_fork.hops.milter.codec import LENGTH, FrameReader, MilterGarbageError, frame
from smtpd_fork.hops.milter.edited import MOST_FIELDS
from smtpd_fork.hops.milter.events import BODY, CONNECT, END, HELO, PAUSE, RCPT, Event, Step
from smtpd_fork.hops.milter.macros import Macros
from smtpd_fork.hops.milter.options import Options, offer, parse_options, parse_symbols
from smtpd_fork.hops.milter.verdict import (
    REJECTED,
    TRY_AGAIN,
    Edit,
    Kind,
    Verdict,
    parse_edit,
    reply_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

__all__ = ["MOST_EDITS", "Conversation", "State"]

MOST_EDITS = 1000
"""Maximum changes of one message; real milters make some tens. Chunks of the body do not count, nor
do deleted fields: a client that sends thousands of fields X-Spam, which milters delete, would have
its message unchecked with ``when-down = "accept"``."""

EDIT_BYTES = 200
"""Bytes of memory that a change takes in addition to its text."""

WRITE_BYTES = 1 << 18
"""Bytes after which no further event is added to a write."""

EVENT_BYTES = 100
"""Bytes that an event counts besides its data, for its macros: a write has 2,000 recipients, and
takes 20 ms."""

ABORT = frame(b"A")
QUIT = frame(b"Q")
_CONTINUE = frame(b"c")

_REPLIES = {b"r": REJECTED}
_OF_A_RECIPIENT = frozenset({b"r", b"t", b"y"})

_AT_THE_END = frozenset({b"h", b"i", b"m", b"b", b"+", b"-", b"2", b"e", b"q"})
"""Changes: valid after the end of the message, before the final answer."""


class State(Enum):
    """The state of a conversation."""

    OPTIONS = auto()
    """Waiting for the answer to our options."""
    OPEN = auto()
    """Events may be sent."""
    ENDED = auto()
    """After an error, or after QUIT."""


class Conversation:
    """The milter protocol on one connection.

    :param room: maximum bytes of the milter's changes to a message
    :ivar verdict: the milter's verdict in this transaction, or None
    :ivar decided_at: the event that the milter has answered with the verdict, or None
    :ivar fault: why the milter counts as down, or an empty string
    :ivar options: the negotiated options, or None
    :ivar progress: number of frames received from the milter
    :ivar refused: the reply that refuses the last recipient, or an empty string
    """

    def __init__(self, room: int) -> None:
        self.state = State.OPTIONS
        self.verdict: Verdict | None = None
        self.decided_at: Event | None = None
        self.fault = ""
        self.options: Options | None = None
        self.progress = 0
        self.refused = ""
        self._output = offer()
        self._reader = FrameReader(room + WRITE_BYTES)
        self._most = self._room = room
        self._steps: Iterator[Step] | None = None
        self._waiting: deque[Event] = deque()  # events without an answer
        self._pausing = False  # send nothing until all events are answered
        self._each_recipient = False
        self._in_transaction = False
        self._begun = True  # a transaction has begun, and nothing was sent in it
        self._skipped: set[bytes] = set()  # commands that the milter skips in this transaction
        self._macros = Macros()
        self._edits: list[Edit] = []
        self._changes = self._deletions = 0  # numbers of edits
        self._quarantine: str | None = None

    @property
    def settled(self) -> bool:
        """Whether the milter has answered all events, has decided, or is down."""
        return self.verdict is not None or self.state is State.ENDED or self.reusable

    @property
    def reusable(self) -> bool:
        """Whether another transaction may begin: no event is unsent or unanswered."""
        return self.state is State.OPEN and self._steps is None and not self._waiting

    @property
    def leading_space(self) -> bool:
        """Whether values of fields include the space after the colon."""
        return self.options is not None and self.options.leading_space

    def wants(self, event: Event) -> bool:
        """Return whether the milter wants such events; True before the options are negotiated."""
        if event.command in self._skipped:
            return False
        return self.options is None or event.command not in self.options.unwanted

    def begin(self) -> bool:
        """Begin a transaction; return whether the last one is aborted, with a frame to send."""
        if self._begun:
            return False
        aborts, self._in_transaction = self._in_transaction, False
        if aborts:
            self._output += ABORT
        self.verdict = self.decided_at = self._quarantine = None
        self.refused = ""
        self._pausing = False
        self._room = self._most
        self._edits = []
        self._changes = self._deletions = 0
        self._skipped.clear()
        self._macros.begin()
        self._begun = True
        return aborts

    def send(self, steps: Iterable[Step], *, each_recipient: bool = False) -> None:
        """Queue events, for :meth:`data_to_send`. Earlier events have to be settled.

        :param each_recipient: a refusal of a recipient is not a verdict: see :attr:`refused`
        """
        assert self._steps is None
        self._begun = False
        self.refused = ""
        self._each_recipient = each_recipient
        if self.verdict is None and self.state is not State.ENDED:
            self._steps = iter(steps)

    def quit(self) -> None:
        """End the conversation with QUIT; an unfinished transaction is dropped."""
        if self.state is not State.ENDED:
            self.state = State.ENDED
            self._forget()
            self._output = QUIT

    def data_to_send(self) -> bytes:
        """Return the bytes to send now; empty: nothing until the milter has answered."""
        output, self._output = self._output, b""
        if not self.has_more:
            return output
        parts: list[bytes | memoryview] = [output]
        size = 0
        for step in self._steps or ():
            size += len(step.data) + EVENT_BYTES
            if not self._put(step, parts) or size >= WRITE_BYTES:
                break
        else:
            self._steps = None
        return b"".join(parts)

    @property
    def has_more(self) -> bool:
        """Whether more events can be sent now.

        If the milter may skip chunks of the body, each chunk has to be answered before the next.
        """
        if self._steps is None or self.state is not State.OPEN:
            return False
        return not (self._pausing and self._waiting)

    def _put(self, step: Step, parts: list[bytes | memoryview]) -> bool:
        """Append the frames of an event; return whether the next event may follow immediately."""
        event, data, macros, several = step
        command, options = event.command, self.options
        assert options is not None
        if macros:
            self._macros.learn(event, macros)
        if step is PAUSE:
            self._pausing = bool(self._waiting)
            return not self._pausing
        if command in options.unwanted or command in self._skipped:
            return True
        if several:
            parts.append(data)
        else:
            if event.stage >= 0 and (texts := self._macros.before(event)):
                parts += (LENGTH.pack(len(texts) + 2), b"D", command, texts)
            parts += (LENGTH.pack(len(data) + 1), command, data)
        if event is not CONNECT and event is not HELO:
            self._in_transaction = True
        if command in options.silent:
            return True
        self._waiting.extend((event,) * (several or 1))
        self._pausing = event is BODY and options.skips
        return not self._pausing

    # -- receiving ---------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Handle bytes of the milter; check :attr:`settled` and :meth:`data_to_send` afterwards."""
        if self.state is State.ENDED:
            return
        try:
            if data := self._without_continues(data):
                for command, content in self._reader.feed(data):
                    self.progress += 1
                    self._answered(command, content)
        except MilterGarbageError as error:
            self.fail(str(error))

    def _without_continues(self, data: bytes) -> bytes:
        """Handle all leading answers "continue"; return the rest. A fast path: most are so."""
        if self._reader.buffered:
            return data
        waiting, event, position = self._waiting, None, 0
        while waiting and data.startswith(_CONTINUE, position):
            event = waiting.popleft()
            position += len(_CONTINUE)
        self.progress += position // len(_CONTINUE)
        if event is END and self.verdict is None:
            self._accept(END, b"", b"")
        return data[position:]

    def fail(self, reason: str) -> None:
        """End the conversation; the milter counts as down, unless there is a verdict."""
        if self.state is not State.ENDED:
            self.state = State.ENDED
            self.fault = reason
            self._forget()

    def _forget(self) -> None:
        self._steps = None
        self._pausing = False
        self._waiting.clear()
        self._edits = []
        self._output = b""

    def _answered(self, command: bytes, data: bytes) -> None:
        """Handle a frame."""
        if command == b"p":
            return  # SMFIR_PROGRESS; the frame was counted in progress
        if self.state is State.OPTIONS:
            self._negotiated(command, data)
            return
        if not self._waiting:
            raise MilterGarbageError(f"it answers {command!r} without an event")
        event = self._waiting[0]
        answer = self.answers.get(command)
        if answer is None or (command in _AT_THE_END and event is not END):
            raise MilterGarbageError(f"it answers {command!r} to {event.name!r}")
        if command not in _AT_THE_END:
            self._waiting.popleft()
        if self.verdict is None:
            answer(self, event, command, data)

    def _negotiated(self, command: bytes, data: bytes) -> None:
        if command == b"l":
            self._macros.list(parse_symbols(data))
        elif command == b"O":
            self.options = parse_options(data)
            self._macros.list(self.options.symbols)
            self.state = State.OPEN
        else:
            raise MilterGarbageError(f"it answers {command!r} to our options")

    def _continue(self, event: Event, _: bytes, __: bytes) -> None:
        if event is END:
            self._accept(event, b"", b"")

    def _skip(self, event: Event, _: bytes, __: bytes) -> None:
        if not event.repeats:
            raise MilterGarbageError(f"it skips {event.name!r}")
        self._skipped.add(event.command)

    def _accept(self, event: Event, _: bytes, __: bytes) -> None:
        edits, self._edits = self._edits, []
        self._decide(event, Verdict(Kind.ACCEPT, edits=edits, quarantine=self._quarantine))

    def _discard(self, event: Event, _: bytes, __: bytes) -> None:
        self._decide(event, Verdict(Kind.DISCARD))

    def _refuse(self, event: Event, command: bytes, data: bytes) -> None:
        reply = reply_of(data) if command == b"y" else _REPLIES.get(command, TRY_AGAIN)
        if event is RCPT and self._each_recipient and command in _OF_A_RECIPIENT:
            self.refused = reply
        else:
            self._decide(event, Verdict(Kind.REFUSE, reply))

    def _edit(self, _: Event, command: bytes, data: bytes) -> None:
        self._room -= len(data) + EDIT_BYTES
        edit = parse_edit(command, data)
        if command == b"m" and not edit.value:
            self._deletions += 1
        elif command != b"b":
            self._changes += 1
        if self._room < 0 or self._changes > MOST_EDITS or self._deletions > MOST_FIELDS:
            raise MilterGarbageError("its changes are too large or too many")
        self._edits.append(edit)

    def _set_quarantine(self, _: Event, __: bytes, data: bytes) -> None:
        self._quarantine = data.partition(b"\0")[0].decode("utf-8", "replace")

    def _decide(self, event: Event, verdict: Verdict) -> None:
        self.verdict = verdict
        self.decided_at = event
        if event is END:
            self._in_transaction = False
        self._steps = None
        self._edits = []

    answers: ClassVar[Mapping[bytes, Callable[[Any, Event, bytes, bytes], None]]] = {
        b"c": _continue,
        b"s": _skip,
        b"a": _accept,
        b"d": _discard,
        b"r": _refuse,
        b"t": _refuse,
        b"y": _refuse,
        b"4": _refuse,  # SMFIR_SHUTDOWN; this and SMFIR_CONN_FAIL below become 451
        b"f": _refuse,
        **dict.fromkeys(_AT_THE_END, _edit),
        b"q": _set_quarantine,
    }
