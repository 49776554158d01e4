"""The fuzzer of the client of a policy server, without a socket.

Invariants: (1) with any answers a client has a state and, if that is BROKEN, a reason; its memory
is bounded. (2) The result does not depend on how the bytes are cut. (3) An action comes from an
answer before the next request, and its reply is one line of 4yz or 5yz.

    python tests/fuzz/policy.py --seconds 30 [--seed N]
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzz.client import BrokenError
from fuzz.plays import Plays
from smtpd_fork.dialogue.reply import is_plain
from smtpd_fork.filters.policy_action import parse_action
from smtpd_fork.hops.hop_client import State
from smtpd_fork.hops.policy import LONGEST_ANSWER, PolicyClient, PolicyRequest

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

ACTIONS = [
    *(b"DUNNO", b"OK", b"REJECT", b"DEFER_IF_PERMIT Greylisted", b"550 5.7.1 no", b"421 bye"),
    *(b"PREPEND X-A: v", b"DISCARD", b"HOLD", b"", b"\xff\xfe", b"4", b"250 ok", b"SLEEP 5"),
    *(b"REJECT \x1b[31m", b"550 " + b"x" * 700, b"REDIRECT <a@b>", b"450 5.1.1 x", b"?"),
]
WORDS = [
    *(b"action=", b"Action=", b"x=y", b"=", b"\n", b"\n\n", b"\r\n", b"\r", b"\0", b" "),
    *(b"HTTP/1.1 200 OK\r\n", b"y" * 5000, b"z\n" * 3000, b"\r" * 5000, b"\xe2\x80\xa8"),
]


class Play(NamedTuple):
    """Data of a policy server after each request."""

    answers: Sequence[bytes]


def a_play(chance: random.Random) -> Play:
    """Return random answers."""
    answers = []
    for _ in range(chance.randrange(1, 6)):
        said = b""
        if chance.random() < 0.3:
            said += b"".join(chance.choices(WORDS, k=chance.randrange(1, 5)))
        if chance.random() < 0.8:
            said += b"action=" + chance.choice(ACTIONS) + chance.choice([b"\n\n", b"\r\n\r\n"])
        if chance.random() < 0.1:
            said = said[: chance.randrange(len(said) + 1)] + chance.randbytes(9)
        answers.append(said)
    return Play(answers)


def go(play: Play, cuts: Sequence[int]) -> object:
    """Return the relevant final state of a client."""
    client, questions = PolicyClient(), []
    for answer in play.answers:
        if client.state is State.READY:
            questions.append(PolicyRequest(b"request=x\n\n"))
            client.begin(questions[-1])
            if client.data_to_send() != b"request=x\n\n":
                raise BrokenError("the request was not sent")
        edges = sorted({0, len(answer), *(cut % (len(answer) + 1) for cut in cuts)})
        for start, end in itertools.pairwise(edges):
            client.receive(answer[start:end])
            _see(client, end - start)
    for question in questions:
        action = None if question.action is None else parse_action(question.action)
        reply = "450 x" if action is None else action.reply or "450 x"
        if reply[0] not in "45" or not is_plain(reply):
            raise BrokenError(f"the reply {reply!r}")
    fault = client.fault and client.fault.reason
    return client.state, fault, [each.action for each in questions]


def _see(client: PolicyClient, packet: int) -> None:
    if len(client._received) > 2 * LONGEST_ANSWER + packet:  # Line ends may be CR LF.
        raise BrokenError(f"{len(client._received)} bytes are buffered")
    if (client.state is State.BROKEN) != (client.fault is not None):
        raise BrokenError(f"{client.state} with the reason {client.fault}")


def _same(play: Play, cuts: Sequence[int]) -> None:
    if go(play, []) != go(play, cuts):
        raise BrokenError(f"cut at {cuts} the dialogue differs")


PLAYS = Plays("dialogues with a policy server", a_play, _same)

if __name__ == "__main__":
    PLAYS.main(__doc__)
