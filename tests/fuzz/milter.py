"""The fuzzer of the client of a milter, without a socket.

Invariants: (1) with any input a conversation ends with an error or continues, each transaction has
at most one verdict, and its memory is bounded. (2) The result does not depend on how the bytes are
cut. (3) A changed message has one header before its body and no bare line end, and a new address is
one that a client could have sent.

    python tests/fuzz/milter.py --seconds 30 [--seed N]
"""

from __future__ import annotations

import itertools
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzz.client import BrokenError
from fuzz.plays import Plays
from smtpd_fork.dialogue.path import parse_path
from smtpd_fork.hops.milter.conversation import WRITE_BYTES, Conversation, State
from smtpd_fork.hops.milter.edited import Parts
from smtpd_fork.hops.milter.events import END, HELO, MAIL, RCPT, Step, body_steps, header_step
from smtpd_fork.hops.milter.verdict import Kind
from smtpd_fork.message import fields

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

ROOM = 20_000

MESSAGE = b"From: a@x\r\nSubject: s\r\n\tt\r\nsubject: u\r\n\r\nhello\r\n"

WORDS = [
    *(b"X-A\0v\0", b"Subject\0\0", b"Subject\0v\r\n\r\nw\0", b"X:\0v\0", b"\0\0", b"", b"X\0"),
    *(b"<b@x>\0", b"b@x\0NOTIFY=NEVER\0", b"<>\0", b"<b@x>\r\nDATA\0", b"a b\0", b"\xff\0"),
    *(b"550 5.1.1 no\0", b"450-4.2.0 a\r\n450 b\0", b"250 ok\0", b"5", b"550\x01\0"),
    *(b"body\r\n", b"bare\nline\rends\0", b"x" * 3000, b"\xe2\x80\xa8"),
]
NUMBERS = [b"", b"\0\0\0\0", b"\0\0\0\1", b"\0\0\0\2", b"\xff\xff\xff\xff"]
COMMANDS = b"aabcccccdefhhiimmlpqrsty+-24OZ\0"


class Play(NamedTuple):
    """Data of a milter: first its options, then the frames of each step."""

    protocol: int
    turns: Sequence[bytes]


def _frame(command: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data) + 1) + command + data


def a_play(chance: random.Random) -> Play:
    """Return a random dialogue."""
    protocol = chance.choice([0, 0x100000, 0xFF080, 0x1FF7FF, chance.getrandbits(22)])
    version = chance.choice([6, 6, 6, 2, 4, 1, 7])
    turns = [_frame(b"O", struct.pack(">III", version, 0x1FF, protocol))]
    for _ in range(chance.randrange(1, 12)):
        said = b""
        for _ in range(chance.choice([1, 1, 1, 2, 5])):
            command = bytes([chance.choice(COMMANDS)]) if chance.random() < 0.7 else b"c"
            said += _frame(command, chance.choice(NUMBERS) + chance.choice(WORDS))
        if chance.random() < 0.05:
            said = said[: chance.randrange(len(said))] + chance.randbytes(9)
        turns.append(said)
    return Play(protocol, turns)


def _steps(conversation: Conversation, parts: Parts) -> Iterator[Step]:
    yield Step(HELO, b"me\0", {"j": "x"})
    yield Step(MAIL, b"<a@x>\0", {"i": "1"})
    yield Step(RCPT, b"<b@x>\0", {"rcpt_addr": "b@x"})
    yield header_step(parts.names_and_values, leading_space=True)
    yield from body_steps(MESSAGE, parts.body)
    yield Step(END)


def go(play: Play, cuts: Sequence[int]) -> object:
    """Return the relevant state of a conversation."""
    conversation, sent = Conversation(ROOM), b""
    conversation.send(_steps(conversation, Parts(MESSAGE)), each_recipient=True)
    verdicts = []
    for said in play.turns:
        while data := conversation.data_to_send():
            sent += data
        edges = sorted({0, len(said), *(cut % (len(said) + 1) for cut in cuts)})
        for start, end in itertools.pairwise(edges):
            conversation.receive(said[start:end])
            _see(conversation)
        if conversation.verdict is not None and conversation.reusable:
            verdicts.append(_made_of(conversation))
            conversation.begin()
            conversation.send(_steps(conversation, Parts(MESSAGE)))
    return conversation.state, verdicts, _made_of(conversation), conversation.fault, sent


def _made_of(conversation: Conversation) -> object:
    """Return the verdict, and the message with its changes."""
    verdict, parts, made = conversation.verdict, Parts(MESSAGE), b""
    if verdict is not None and verdict.kind is Kind.ACCEPT:
        made = parts.edited(verdict.edits, leading_space=conversation.leading_space)
        see_message(made)
        for edit in verdict.edits:
            if edit.address and parse_path(f"<{edit.address}>", strict=True) is None:
                raise BrokenError(f"the address {edit.address!r}")
    if verdict is not None and verdict.kind is Kind.REFUSE and verdict.reply[:1] not in "45":
        raise BrokenError(f"the refusal {verdict.reply!r}")
    return verdict, conversation.decided_at, made


def _see(conversation: Conversation) -> None:
    held = conversation._reader.buffered + sum(len(each.value) for each in conversation._edits)
    if held > 2 * ROOM + WRITE_BYTES:
        raise BrokenError(f"{held} bytes are buffered")
    if (conversation.state is State.ENDED) != bool(conversation.fault):
        raise BrokenError(f"{conversation.state} with {conversation.fault}")
    if conversation.verdict is not None and not conversation.settled:
        raise BrokenError("there is a verdict, and the conversation waits for more")


def see_message(content: bytes) -> None:
    if content.count(b"\r") != content.count(b"\r\n") or content.count(b"\n") != content.count(
        b"\r\n"
    ):
        raise BrokenError(f"a bare line end in {content!r}")
    end = max((each.end for each in fields(content)), default=0)
    if content[end : end + 2] not in {b"\r\n", b""}:
        raise BrokenError(f"no empty line behind the header of {content!r}")


def _same(play: Play, cuts: Sequence[int]) -> None:
    if go(play, []) != go(play, cuts):
        raise BrokenError(f"cut at {cuts} the conversation differs")


PLAYS = Plays("conversations with a milter", a_play, _same)

if __name__ == "__main__":
    PLAYS.main(__doc__)
