"""Client: the client's side of SMTP and LMTP (RFC 5321, RFC 2033). Sans-io: no socket, no clock.

:mod:`smtpd_fork.hops.opening` opens the session. Then :meth:`Client.begin` gets one transaction at
a time; its replies are in the :class:`Order` when :attr:`Client.state` is READY, RESET or BROKEN.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from smtpd_fork.hops.client_reply import CLOSING
from smtpd_fork.hops.opening import BAD_REPLY, Opening, State, Terms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from smtpd_fork.hops.errors import HopError
    from smtpd_fork.hops.replies import HopReply

__all__ = ["Client", "Order", "State", "Terms"]

GO_AHEAD = 354
RESET = b"RSET\r\n"

MOST_USUAL = 20
"""Maximum recipients of a message whose replies are matched with one regular expression."""


@lru_cache(maxsize=MOST_USUAL + 3)
def _all_accepted(recipients: int) -> re.Pattern[bytes]:
    """Return a pattern for the replies to MAIL, RCPT and DATA if all commands are accepted.

    This is the usual case, and much faster than parsing each reply.

    :param recipients: the number of recipients and of commands XFORWARD
    """
    line = rb"[0-9]{2} [ -~]{0,500}\r\n"
    return re.compile(rb"(?:2%b){%d}354 [ -~]{0,500}\r\n" % (line, recipients + 1))


@dataclass(slots=True)
class Order:
    """A transaction: the commands, the content, and finally the replies.

    :ivar sender: the command MAIL
    :ivar recipients: the commands RCPT
    :ivar pieces: the content as it is sent; None: only verify the recipients
    :ivar chunked: whether the pieces begin with BDAT, so that DATA is not sent
    :ivar origin: commands XFORWARD to send before MAIL; the server may refuse them
    :ivar replies: the reply for each recipient; None until it is known
    :ivar sender_refused: whether the replies are the reply to MAIL
    :ivar fault: why the connection ended before the server had answered everything
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
    """The state of an SMTP or LMTP session with a server.

    :param terms: what the session requires of the server
    :param encrypted: whether the connection uses implicit TLS
    :ivar order: the current or last transaction; None before the first
    """

    def __init__(self, terms: Terms, *, encrypted: bool = False) -> None:
        super().__init__(terms, encrypted=encrypted)
        self.order: Order | None = None
        self._commands: list[bytes] = []  # unsent commands of the transaction
        self._usual: re.Pattern[bytes] | None = None  # matches the next data if all is accepted
        self._answered = 0
        self._reset_sent = False  # RSET was sent with the commands
        self._waiting: list[int] = []  # recipients without a final reply, in order

    def begin(self, order: Order) -> None:
        """Begin a transaction; the state has to be READY."""
        assert self.state is State.READY
        self.order = order
        self.has_answered = False
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
        """Handle bytes of the server; check :attr:`state` and :meth:`data_to_send` afterwards."""
        usual, self._usual = self._usual, None
        if usual is None or self._output or self.fault or not usual.fullmatch(data):
            super().receive(data)
            return
        assert self.order is not None
        self.has_answered = True
        self._answered = len(self.order.recipients) + 2
        self._send(self.order)

    def _envelope(self, reply: HopReply) -> None:
        """Handle the reply to XFORWARD, MAIL, RCPT or DATA."""
        order = self.order
        assert order is not None
        position, count = self._answered, len(order.recipients)
        self._answered += 1
        if reply.code == CLOSING and position <= 0:
            self._refused("MAIL", reply)  # has_answered is False: another connection is tried
            return
        if position < 0:
            if self._commands:
                self._output.append(self._commands.pop(0))
            return
        self.has_answered = True
        if reply.code == CLOSING:
            self._close(reply)
        elif position > count:
            self._may_send(order, reply)
        elif reply.code < 400 and not reply.positive:  # noqa: PLR2004 - RFC 5321 4.2.1
            self._refused("MAIL" if position == 0 else "RCPT", reply, BAD_REPLY)
        else:
            self._record(order, position, reply)
            self._send_next(order, position)

    def _record(self, order: Order, position: int, reply: HopReply) -> None:
        """Store a reply to MAIL or RCPT for the recipients that it concerns."""
        if position == 0:
            if not reply.positive:
                order.sender_refused = True
                order.replies = [reply] * len(order.replies)
        elif order.replies[position - 1] is None and (not reply.positive or order.pieces is None):
            order.replies[position - 1] = reply

    def _send_next(self, order: Order, position: int) -> None:
        """Send the next command, unless all were pipelined, or no recipient is left."""
        last = position == len(order.recipients)
        if self._commands:
            if (position == 0 or last) and None not in order.replies:
                self._reset()  # no recipient is left
            else:
                self._output.append(self._commands.pop(0))
        elif last and order.pieces is None:
            self._reset()
        elif last and order.chunked:
            self._send(order)

    def _may_send(self, order: Order, reply: HopReply) -> None:
        """Handle the reply to DATA."""
        if reply.code == GO_AHEAD:
            self._send(order)
        elif reply.code < 400:  # noqa: PLR2004 - RFC 5321 4.2.1
            self._refused("DATA", reply, BAD_REPLY)
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
            # The hop has accepted DATA without a recipient. Closing the connection makes it drop
            # the message; it is not defined which replies LMTP would have without recipients.
            self.fail("the hop accepts DATA without a recipient")

    def _content(self, reply: HopReply) -> None:
        """Handle a reply to the content; LMTP has one for each accepted recipient."""
        order = self.order
        assert order is not None
        early, self._early = self._early or self._pieces is not None, False
        if early and reply.code < 400:  # noqa: PLR2004 - RFC 5321 4.2.1
            self.fail("the hop accepted a message before its end", BAD_REPLY)
        elif reply.code == CLOSING:
            self._close(reply)
        elif reply.code < 400 and not reply.positive:  # noqa: PLR2004 - so too
            self._refused("the message", reply, BAD_REPLY)
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
        """Fail because the hop closes the connection, or has refused before the content's end."""
        if reply is not None and self.order is not None:
            self._fill(self.order, reply)
        text = "" if reply is None else f": {self._shown(reply)}"
        self.fail(f"the hop closes the connection{text}")

    def _fill(self, order: Order, reply: HopReply) -> None:
        """Store a reply for all recipients without one."""
        order.replies = [reply if known is None else known for known in order.replies]

    def _reset(self) -> None:
        """End an unfinished transaction with RSET; the connection is usable after a 250."""
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
