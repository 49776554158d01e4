"""Conversation: one transaction told to a milter. Sans-io: no socket, no clock.

It begins with the options. Then each event is told in order, and answered before the next one is,
but for those that the milter does not answer. Which answers may come is in
:attr:`Conversation.answers`; any other ends it with a fault, and the milter counts as down.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Any, ClassVar

from smtpd_fork.hops.milter.codec import (
    FrameReader,
    MilterGarbageError,
    Options,
    Protocol,
    frame,
    offer,
    parse_options,
    parse_symbols,
)
from smtpd_fork.hops.milter.events import END, EVENTS, RCPT, Event, Step, packed
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
"""Changes of one message, pieces of the body not counted: those of real milters are some tens."""

EDIT_BYTES = 200
"""Memory that a change takes besides its text."""

WRITE_BYTES = 1 << 18
"""Frames that are sent in one go."""

QUIT = frame(b"Q")

_REPLIES = {b"r": REJECTED}
_OF_A_RECIPIENT = frozenset({b"r", b"t", b"y"})


_AT_THE_END = frozenset({b"h", b"i", b"m", b"b", b"+", b"-", b"2", b"e", b"q"})
"""Changes: they may come after the end of the message, before the last answer."""


class State(Enum):
    """Where a conversation is."""

    OPTIONS = auto()
    """The answer to our options has not come."""
    READY = auto()
    """The next event may be told."""
    WAITING = auto()
    """The answer to an event has not come."""
    ENDED = auto()
    """There is a verdict, or a fault."""


class Conversation:
    """What is said on one connection.

    :param room: bytes that a milter may change at most
    :param each_recipient: the refusal of a recipient is for it alone: see :attr:`refused`
    :ivar verdict: what the milter has decided, or None
    :ivar fault: why there is none; empty while there may be one
    :ivar options: what was negotiated, or None
    :ivar progress: how many frames of the milter have come
    :ivar refused: the reply to the recipient that was told last; empty if it was accepted
    """

    def __init__(self, room: int, *, each_recipient: bool = False) -> None:
        self.state = State.OPTIONS
        self.verdict: Verdict | None = None
        self.fault = ""
        self.options: Options | None = None
        self.progress = 0
        self.refused = ""
        self._each_recipient = each_recipient
        self._output = offer()
        self._reader = FrameReader(room + WRITE_BYTES)
        self._room = room
        self._steps: Iterator[Step] | None = None
        self._event: Event | None = None  # the one whose answer has not come
        self._unwanted: set[bytes] = set()
        self._silent: set[bytes] = set()
        self._macros: dict[str, str] = {}
        self._symbols: dict[int, list[str]] = {}
        self._edits: list[Edit] = []
        self._quarantine: str | None = None

    @property
    def settled(self) -> bool:
        """Whether the milter has answered all that it was told."""
        ended = self.state is State.ENDED
        return ended or (self.state is State.READY and self._steps is None)

    @property
    def leading_space(self) -> bool:
        """Whether the values of fields keep the space behind the colon."""
        return self.options is not None and Protocol.LEADING_SPACE in self.options.protocol

    def wants(self, event: Event) -> bool:
        """Whether the milter is to be told such events; before its options came it is True."""
        return event.command not in self._unwanted

    def tell(self, steps: Iterable[Step]) -> None:
        """Tell events; those before have to be settled, or none was told."""
        assert self._steps is None
        self.refused = ""
        if self.state is not State.ENDED:
            self._steps = iter(steps)

    def take(self) -> bytes:
        """Return what is to be sent now; empty: nothing until the milter has answered."""
        parts, size = [self._output], len(self._output)
        self._output = b""
        while self.state is State.READY and self._steps is not None and size < WRITE_BYTES:
            step = next(self._steps, None)
            if step is None:
                self._steps = None
            elif step.event.command not in self._unwanted:
                parts += self._said(step)
                size += len(step.data)
            elif step.macros is not None:
                self._macros.update(step.macros)
        return b"".join(parts)

    def _said(self, step: Step) -> list[bytes]:
        """Return the frames of an event."""
        event = step.event
        frames = [frame(event.command, step.data)]
        if event.stage is not None:
            self._macros.update(step.macros or {})
            names = self._symbols.get(event.stage, event.symbols)
            if macros := packed(names, self._macros):
                frames.insert(0, frame(b"D", event.command + macros))
        if event.command not in self._silent:
            self.state = State.WAITING
            self._event = event
        return frames

    # -- what the milter says ----------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take bytes of the milter; then see :attr:`state`, and :meth:`take`."""
        if self.state is State.ENDED:
            return
        try:
            for command, content in self._reader.feed(data):
                self.progress += 1
                if not self._answered(command, content):
                    return
        except MilterGarbageError as error:
            self.fail(str(error))

    def fail(self, reason: str) -> None:
        """End without a verdict."""
        if self.state is not State.ENDED:
            self.fault = reason
            self._finish()

    def _answered(self, command: bytes, data: bytes) -> bool:
        """Take a frame; return whether another one may come."""
        if command == b"p":
            return True  # it is at work: see progress
        if self.state is State.OPTIONS:
            self._negotiated(command, data)
            return True
        if self.state is not State.WAITING:
            raise MilterGarbageError(f"it answers {command!r}, and was asked nothing")
        answer = self.answers.get(command)
        if answer is None or (command in _AT_THE_END and self._event is not END):
            event = self._event.name if self._event else ""
            raise MilterGarbageError(f"it answers {command!r} to {event!r}")
        answer(self, command, data)
        return self.verdict is None

    def _negotiated(self, command: bytes, data: bytes) -> None:
        if command == b"l":
            self._symbols |= parse_symbols(data)
        elif command == b"O":
            self.options = options = parse_options(data)
            self._symbols |= options.symbols
            protocol = int(options.protocol)  # the operators of IntFlag are slow
            for event in EVENTS:
                if event.since > options.version or event.unwanted & protocol:
                    self._unwanted.add(event.command)
                if event.silent & protocol:
                    self._silent.add(event.command)
            self.state = State.READY
        else:
            raise MilterGarbageError(f"it answers {command!r} to our options")

    def _go_on(self, _: bytes, __: bytes) -> None:
        if self._event is END:
            self._accept(b"", b"")
        else:
            self.state = State.READY

    def _skip(self, command: bytes, data: bytes) -> None:
        assert self._event is not None
        if not self._event.repeats:
            raise MilterGarbageError(f"it skips {self._event.name!r}")
        self._unwanted.add(self._event.command)
        self._go_on(command, data)

    def _accept(self, _: bytes, __: bytes) -> None:
        edits, self._edits = self._edits, []
        self._decide(Verdict(Kind.ACCEPT, edits=edits, quarantine=self._quarantine))

    def _discard(self, _: bytes, __: bytes) -> None:
        self._decide(Verdict(Kind.DISCARD))

    def _refuse(self, command: bytes, data: bytes) -> None:
        reply = reply_of(data) if command == b"y" else _REPLIES.get(command, TRY_AGAIN)
        if self._event is RCPT and self._each_recipient and command in _OF_A_RECIPIENT:
            self.refused = reply
            self.state = State.READY
        else:
            self._decide(Verdict(Kind.REFUSE, reply))

    def _edit(self, command: bytes, data: bytes) -> None:
        self._room -= len(data) + EDIT_BYTES
        body = command == b"b"
        if self._room < 0 or (not body and len(self._edits) >= MOST_EDITS):
            raise MilterGarbageError("it changes too much")
        self._edits.append(parse_edit(command, data))

    def _put_aside(self, _: bytes, data: bytes) -> None:
        self._quarantine = data.partition(b"\0")[0].decode("utf-8", "replace")

    def _decide(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self._finish()

    def _finish(self) -> None:
        self.state = State.ENDED
        self._steps = self._event = None
        self._edits = []
        self._output = b"" if self.fault else QUIT

    answers: ClassVar[Mapping[bytes, Callable[[Any, bytes, bytes], None]]] = {
        b"c": _go_on,
        b"s": _skip,
        b"a": _accept,
        b"d": _discard,
        b"r": _refuse,
        b"t": _refuse,
        b"y": _refuse,
        b"4": _refuse,  # "shutdown" and "connection failed": for us it is 451
        b"f": _refuse,
        **dict.fromkeys(_AT_THE_END, _edit),
        b"q": _put_aside,
    }
