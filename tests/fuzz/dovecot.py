"""The fuzzer of the client of Dovecot's authentication service, without a socket.

Invariants: (1) with any input a conversation continues, or ends with an error, and its memory is
bounded. (2) The result does not depend on how the bytes are cut. (3) A client is authenticated only
after an answer OK that names a user, and the length of each challenge is limited.

    python tests/fuzz/dovecot.py --seconds 30 [--seed N]
"""

from __future__ import annotations

import itertools
import sys
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzz.client import BrokenError
from fuzz.plays import Plays
from smtpd_fork.filters.auth.dovecot_backend import outcome_of
from smtpd_fork.hops.dovecot.conversation import (
    LONGEST_CHALLENGE,
    LONGEST_LINE,
    Answer,
    Conversation,
    DovecotGarbageError,
    Kind,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

OPENING = b"VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nMECH\tCRAM-MD5\tactive\nDONE\n"

COMMANDS = [b"OK", b"OK", b"FAIL", b"CONT", b"MECH", b"DONE", b"VERSION", b"SPID", b"", b"ok"]
WORDS = [
    *(b"1", b"2", b"4294967296", b"-1", b"x", b"", b"user=b@x", b"user=", b"user=a\x01nb", b"temp"),
    *(b"user=\x01", b"code=authz_fail", b"user_disabled", b"reason=\x1b[2J", b"PLAIN", b"\xff\xfe"),
    *(b64encode(b"<1@mx>"), b"=", b"YQ=", b64encode(b"x" * 9300), b"user=" + b"y" * 400, b"1\r"),
]


def a_play(chance: random.Random) -> bytes:
    """Return a random stream."""
    said = OPENING if chance.random() < 0.8 else OPENING[: chance.randrange(len(OPENING))]
    for _ in range(chance.randrange(1, 12)):
        words = [chance.choice(COMMANDS), *chance.choices(WORDS, k=chance.randrange(4))]
        said += b"\t".join(words) + b"\n"
    if chance.random() < 0.1:
        said += chance.choice([b"x" * 70_000, b"x\n" * 1100, chance.randbytes(50)])
    return said


def go(said: bytes, cuts: Sequence[int]) -> object:
    """Return the relevant state of a conversation."""
    conversation, answers, error = Conversation(7), [], ""
    edges = sorted({0, len(said), *(cut % (len(said) + 1) for cut in cuts)})
    try:
        for start, end in itertools.pairwise(edges):
            for number, answer in conversation.receive(said[start:end]):
                _see(answer)
                answers.append((number, answer))
            if conversation.buffered > LONGEST_LINE:
                raise BrokenError(f"{conversation.buffered} bytes are buffered")
    except DovecotGarbageError as found:
        error = str(found)
    return answers, error, conversation.ready, conversation.mechanisms


def _see(answer: Answer) -> None:
    if answer.kind is Kind.CONTINUE:
        if len(b64encode(answer.data)) > LONGEST_CHALLENGE * 4 // 3:
            raise BrokenError(f"a challenge of {len(answer.data)} bytes")
        return
    outcome = outcome_of(answer)
    if outcome.user and (answer.kind is not Kind.OK or not outcome.user.isprintable()):
        raise BrokenError(f"{outcome.user!r} has authenticated by {answer}")
    if bool(outcome.user) == bool(outcome.reply) or outcome.reply[:1] not in {"", "4", "5"}:
        raise BrokenError(f"the reply {outcome.reply!r} to {answer}")
    if not outcome.reason.isprintable():
        raise BrokenError(f"the log has {outcome.reason!r}")


def _same(said: bytes, cuts: Sequence[int]) -> None:
    if go(said, []) != go(said, cuts):
        raise BrokenError(f"cut at {cuts} the conversation differs")


PLAYS = Plays("conversations with Dovecot", a_play, _same)

if __name__ == "__main__":
    PLAYS.main(__doc__)
