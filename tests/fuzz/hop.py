"""The fuzzer of the client of a next hop, without a socket.

Invariants: (1) with any replies a client has a state and, if that is BROKEN, a reason; its memory
is bounded, and the reason contains no password. (2) The result does not depend on how the bytes
are cut. (3) A recipient counts as delivered only after a positive reply to the end of the message,
in LMTP one for each recipient.

    python tests/fuzz/hop.py --seconds 60 [--seed N]
"""

from __future__ import annotations

import re
import sys
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
import itertools

from fuzz.client import BrokenError
from fuzz.plays import Plays
from smtpd_fork.hops.client import Client, Order, State, Terms
from smtpd_fork.hops.errors import ConnectionLostError
from smtpd_fork.hops.replies import LONGEST_LINE, LONGEST_REPLY
from smtpd_fork.message import MailClient

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

PASSWORD = "correct-horse-battery"
ECHO = b64encode(f"\0u\0{PASSWORD}".encode())
SECRETS = (PASSWORD, ECHO[:12].decode(), b64encode(PASSWORD.encode()).decode())

OPENING = b"220 hop\r\n250-hop\r\n250-PIPELINING\r\n250 AUTH PLAIN LOGIN\r\n"

WORDS = [
    *(b"220 hop\r\n", b"250 2.0.0 ok\r\n", b"250-hop\r\n", b"250-PIPELINING\r\n", b"250 SIZE\r\n"),
    *(b"250-CHUNKING\r\n", b"250-AUTH PLAIN LOGIN\r\n", b"250-STARTTLS\r\n", b"354 go on\r\n"),
    *(b"421 closing\r\n", b"451 4.3.0 no\r\n", b"550 5.1.1 no\r\n", b"235 ok\r\n", b"334 \r\n"),
    *(
        b"503\r\n",
        b"399 x\r\n",
        b"100 x\r\n",
        b"600 x\r\n",
        b"2",
        b"50",
        b" ",
        b"-",
        b"\r\n",
        b"\n",
    ),
    *(b"250-XCLIENT ADDR NAME\r\n", b"250-XFORWARD NAME\r\n", b"554 5.7.1 no\r\n"),
    *(b"\r", b"\0", b"\xff\xfe", b"\x1b[31m", b"\xe2\x80\xa8", b"x" * 700, b"250-x\r\n" * 200),
]
"""The hop may also repeat the bytes that it got."""

DECIDED = re.compile(rb"(?m)^2[0-9]{2}(?: [^\r\n]*)?\r?$")

TRANSACTIONS = 3

CLIENTS = (MailClient(("192.0.2.7", 25), "x.example"), MailClient(("2001:db8::7", 25)))


class Play(NamedTuple):
    """A dialogue, so that it can be repeated.

    :ivar rounds: data of the hop; between them the client sends all it can
    :ivar origin: commands XFORWARD of each transaction
    """

    terms: Terms
    recipients: int
    chunked: bool
    rounds: Sequence[bytes]
    origin: int = 0


@dataclass
class _Content:
    """The pieces of a message, and the data of the hop since the last piece was read."""

    ended: bool = False
    said: bytearray = field(default_factory=bytearray)

    def pieces(self) -> Iterator[bytes]:
        yield b"text\r\n"
        self.ended = True
        yield b".\r\n"


class _Run:
    """One client in a play."""

    def __init__(self, play: Play) -> None:
        self._play = play
        self._client = Client(play.terms)
        self._orders: list[tuple[Order, _Content]] = []
        self._sent = bytearray()

    def go(self, cuts: Sequence[int]) -> object:
        """Return the relevant final state of the client, without the text of the reason."""
        for said in self._play.rounds:
            for _, content in self._orders:
                if content.ended:
                    content.said += said
            edges = sorted({0, len(said), *(cut % (len(said) + 1) for cut in cuts)})
            for start, end in itertools.pairwise(edges):
                self._client.receive(said[start:end])
            self._see()
            self._speak()
        fault = self._client.fault
        replies = [order.replies for order, _ in self._orders]
        again = isinstance(fault, ConnectionLostError) and not fault.has_answered
        return self._client.state, again, bytes(self._sent), replies

    def _speak(self) -> None:
        self._take()
        if self._is_ready() and len(self._orders) < TRANSACTIONS:
            content = _Content()
            pieces = None if len(self._orders) == 1 else content.pieces()
            commands = [b"RCPT TO:<b@x>\r\n"] * self._play.recipients
            order = Order(b"MAIL FROM:<a@x>\r\n", commands, pieces, self._play.chunked)
            order.origin = [b"XFORWARD NAME=x\r\n"] * self._play.origin
            self._orders.append((order, content))
            self._client.begin(order)
            self._take()

    def _is_ready(self) -> bool:
        """Return whether a transaction may begin; XFORWARD has to be sent first."""
        client = self._client
        if client.state is State.READY and self._play.terms.xclient:
            client.set_client(CLIENTS[len(self._orders) % 2])
            self._take()
        return client.state is State.READY

    def _take(self) -> None:
        while piece := self._client.data_to_send():
            self._sent += piece

    def _see(self) -> None:
        client = self._client
        held = len(client._reader._rest) + sum(map(len, client._reader._lines))
        if held > LONGEST_LINE + LONGEST_REPLY:
            raise BrokenError(f"{held} bytes of replies are buffered")
        if (client.state is State.BROKEN) != (client.fault is not None):
            raise BrokenError(f"{client.state} with the reason {client.fault}")
        if client.fault is not None and any(each in client.fault.reason for each in SECRETS):
            raise BrokenError(f"the reason shows the password: {client.fault.reason}")
        for order, content in self._orders:
            self._see_replies(order, content)

    def _see_replies(self, order: Order, content: _Content) -> None:
        stored = sum(each is not None and each.positive for each in order.replies)
        if order.pieces is None or not stored:
            return
        said = len(DECIDED.findall(bytes(content.said)))
        if said < (stored if self._play.terms.lmtp else 1):
            raise BrokenError(
                f"{stored} recipients count as delivered, and the hop accepted {said} times"
            )


def a_play(chance: random.Random) -> Play:
    """Return a random dialogue."""
    login: dict[str, Any] = {"user": "u", "password": PASSWORD} if chance.random() < 0.4 else {}
    starttls = chance.choice(["no", "no", "no", "offered", "required"])
    xclient = not login and chance.random() < 0.4
    terms = Terms("me.example", chance.random() < 0.4, starttls, **login, xclient=xclient)
    behind = [ECHO, b"500 %b\r\n" % ECHO, b"250 " + PASSWORD.encode()] if login else []
    opened = chance.random() < 0.8
    rounds = [OPENING[:9], OPENING[9:]] if opened else []
    words = WORDS + (behind if opened else [])
    for _ in range(chance.randrange(1, 9)):
        count = chance.choice([1, 1, 2, 3, 4, 9])
        rounds += [b"".join(chance.choices(words, k=count))]
    if xclient and opened:
        rounds[1] = OPENING[9:].replace(b"250 AUTH", b"250-XCLIENT ADDR\r\n250 AUTH")
        rounds += [b"220 hop\r\n", rounds[1]] * chance.randrange(3)
    recipients, chunked = chance.randrange(1, 4), chance.random() < 0.3
    return Play(terms, recipients, chunked, rounds, chance.choice([0, 0, 1, 2]))


def _same(play: Play, cuts: Sequence[int]) -> None:
    if _Run(play).go([]) != _Run(play).go(cuts):
        raise BrokenError(f"cut at {cuts} the dialogue differs")


PLAYS = Plays("dialogues with a next hop", a_play, _same)

if __name__ == "__main__":
    PLAYS.main(__doc__)
