"""Client: the client's side of SMTP and LMTP (RFC 5321, RFC 2033). Sans-io: no socket, no clock.

It opens as :mod:`smtpd_fork.hops.opening` has it; then a transaction at a time is given to
:meth:`Client.begin`, and its replies are in the :class:`Order` when :attr:`Client.state` is READY,
RESET or BROKEN.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from smtpd_fork.hops.opening import NONSENSE, Opening, State, Terms
from smtpd_fork.hops.passed_on import CLOSING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from smtpd_fork.hops.errors import HopError
    from smtpd_fork.hops.replies import HopReply

__all__ = ["Client", "Order", "State", "Terms"]

GO_AHEAD = 354
RESET = b"RSET\r\n"

MOST_USUAL = 20
"""Recipients of a message whose replies are looked at together."""


@lru_cache(maxsize=MOST_USUAL + 3)
def _all_accepted(recipients: int) -> re.Pattern[bytes]:
    """Return what matches the replies to MAIL, RCPT and DATA where all were accepted.

    XFORWARD counts as a recipient.

    That is the usual case, and costs a fraction of a look at each reply.
    """
    line = rb"[0-9]{2} [ -~]{0,500}\r\n"
    return re.compile(rb"(?:2%b){%d}354 [ -~]{0,500}\r\n" % (line, recipients + 1))


@dataclass(slots=True)
class Order:
    """A transaction: the commands, the content, and in the end the replies.

    :ivar sender: the command MAIL
    :ivar recipients: the commands RCPT
    :ivar pieces: the content as it is sent; None to ask about the recipients alone
    :ivar chunked: the pieces begin with BDAT: DATA is not sent
    :ivar origin: commands before MAIL that say where the message came from (XFORWARD); the hop may
        refuse them
    :ivar replies: of each recipient, once it is known
    :ivar sender_refused: they are the reply to MAIL
    :ivar fault: why the connection ended before the hop had answered everything
    """

    sender: bytes
    recipients: Sequence[bytes]
    pieces: Iterator[bytes] | None = None
    chunked: bool = False
    origin: Sequence[bytes] = ()
    replies: list[HopReply | None] = field(default_factory=list)
    sender_refused: bool = False
    fault: HopError | None = None


class Client(Opening):
    """One connection to a hop, without the connection.

    :param terms: what is asked of the hop
    :param encrypted: whether it is implicit TLS
    :ivar order: the transaction in hand, or the last one; None before the first
    """

    def __init__(self, terms: Terms, *, encrypted: bool = False) -> None:
        super().__init__(terms, encrypted=encrypted)
        self.order: Order | None = None
        self._commands: list[bytes] = []  # of the transaction, that have not been sent
        self._usual: re.Pattern[bytes] | None = None  # the whole of what may come next
        self._answered = 0
        self._reset_sent = False  # with the commands
        self._waiting: list[int] = []  # recipients whose last reply has not come, in order

    def begin(self, order: Order) -> None:
        """Begin a transaction; the state has to be READY."""
        assert self.state is State.READY
        self.order = order
        self.heard = False
        self._answered = -len(order.origin)
        self.state = State.ENVELOPE
        order.replies = [None] * len(order.recipients)
        self._commands = [*order.origin, order.sender, *order.recipients]
        if order.pieces is not None and not order.chunked:
            self._commands.append(b"DATA\r\n")
        self._reset_sent = False
        if "PIPELINING" in self.offered:
            if order.pieces is None:
                self._commands.append(RESET)
                self._reset_sent = True
            elif not order.chunked and len(order.recipients) <= MOST_USUAL:
                self._usual = _all_accepted(len(order.recipients) + len(order.origin))
            self._output, self._commands = self._commands, []
        else:
            self._output.append(self._commands.pop(0))

    def receive(self, data: bytes) -> None:
        """Take bytes of the hop; then see :attr:`state`, and :meth:`take`."""
        usual, self._usual = self._usual, None
        if usual is None or self._output or self.fault or not usual.fullmatch(data):
            super().receive(data)
            return
        assert self.order is not None
        self.heard = True
        self._answered = len(self.order.recipients) + 2
        self._send(self.order)

    def _envelope(self, reply: HopReply) -> None:
        """Take the reply to MAIL, RCPT or DATA."""
        order = self.order
        assert order is not None
        position, count = self._answered, len(order.recipients)
        self._answered += 1
        if reply.code == CLOSING and position <= 0:
            self._refused("MAIL", reply)  # nothing was heard: another connection may do
            return
        if position < 0:
            if self._commands:
                self._output.append(self._commands.pop(0))
            return
        self.heard = True
        if reply.code == CLOSING:
            self._close(reply)
        elif position > count:
            self._may_send(order, reply)
        elif reply.code < 400 and not reply.positive:  # noqa: PLR2004 - RFC 5321 4.2.1
            self._refused("MAIL" if position == 0 else "RCPT", reply, NONSENSE)
        else:
            self._judge(order, position, reply)
            self._go_on(order, position)

    def _judge(self, order: Order, position: int, reply: HopReply) -> None:
        """Note what a reply to MAIL or RCPT says of the recipients."""
        if position == 0:
            if not reply.positive:
                order.sender_refused = True
                order.replies = [reply] * len(order.replies)
        elif order.replies[position - 1] is None and (not reply.positive or order.pieces is None):
            order.replies[position - 1] = reply

    def _go_on(self, order: Order, position: int) -> None:
        """Send the next command, unless all were sent at once or there is nothing left to ask."""
        last = position == len(order.recipients)
        if self._commands:
            if (position == 0 or last) and None not in order.replies:
                self._reset()  # there is nobody left to send it to
            else:
                self._output.append(self._commands.pop(0))
        elif last and order.pieces is None:
            self._reset()
        elif last and order.chunked:
            self._send(order)

    def _may_send(self, order: Order, reply: HopReply) -> None:
        """Take the reply to DATA."""
        if reply.code == GO_AHEAD:
            self._send(order)
        elif reply.code < 400:  # noqa: PLR2004 - RFC 5321 4.2.1
            self._refused("DATA", reply, NONSENSE)
        else:
            self._fill(order, reply)
            self._reset()

    def _send(self, order: Order) -> None:
        """Send the content, if there is a recipient for it."""
        waiting = [index for index, known in enumerate(order.replies) if known is None]
        if waiting:
            self._waiting = waiting if self._terms.lmtp else [waiting[0]]
            self._pieces = order.pieces
            self.state = State.CONTENT
        elif order.chunked:
            self._reset()
        else:
            # Without recipients there is no content; and how the hop would count its replies to
            # none is not known. It drops what has not ended.
            self.lose("the hop takes a message for nobody")

    def _content(self, reply: HopReply) -> None:
        """Take a reply to the content: one, or in LMTP one for each recipient."""
        order = self.order
        assert order is not None
        early, self._early = self._early or self._pieces is not None, False
        if early and reply.code < 400:  # noqa: PLR2004 - RFC 5321 4.2.1
            self.lose("the hop took a message before its end", NONSENSE)
        elif reply.code == CLOSING:
            self._close(reply)
        elif reply.code < 400 and not reply.positive:  # noqa: PLR2004 - so too
            self._refused("the message", reply, NONSENSE)
        elif not self._terms.lmtp:
            self._fill(order, reply)
            self._finish()
        else:
            order.replies[self._waiting.pop(0)] = reply
            if not self._waiting:
                self._finish()

    def _finish(self) -> None:
        if self._pieces is None:
            self.state = State.READY
            return
        self._close(None)

    def _close(self, reply: HopReply | None) -> None:
        """End with a connection that the hop closes, or that is in the middle of a content."""
        if reply is not None and self.order is not None:
            self._fill(self.order, reply)
        said = "" if reply is None else f": {self._shown(reply)}"
        self.lose(f"the hop closes the connection{said}")

    def _fill(self, order: Order, reply: HopReply) -> None:
        """Give a reply to all recipients that have none."""
        order.replies = [reply if known is None else known for known in order.replies]

    def _reset(self) -> None:
        """End a transaction that was not completed; the connection is of use if the hop agrees."""
        self._commands = []
        if not self._reset_sent:
            self._output.append(RESET)
        self.state = State.RESET

    def _was_reset(self, reply: HopReply) -> None:
        if reply.code == 250:  # noqa: PLR2004 - RFC 5321 4.3.2
            self.state = State.READY
        else:
            self._refused("RSET", reply)

    answers: ClassVar[Mapping[State, Callable[[Any, HopReply], None]]] = {
        **Opening.answers,
        State.ENVELOPE: _envelope,
        State.CONTENT: _content,
        State.RESET: _was_reset,
    }
