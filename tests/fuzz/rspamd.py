"""The fuzzer of the parser of rspamd's answers.

Invariants: (1) any data gives an answer or one kind of error. (2) A changed message has one header
before its body, no bare line end, and only ASCII in its header. (3) A new address is one that a
client could have sent.

    python tests/fuzz/rspamd.py --seconds 30 [--seed N]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzz.client import BrokenError
from fuzz.milter import MESSAGE, see_message
from fuzz.plays import Plays
from smtpd_fork.dialogue.path import parse_path
from smtpd_fork.hops.milter.edited import Parts
from smtpd_fork.hops.rspamd.answer import RspamdGarbageError, parse_answer
from smtpd_fork.hops.rspamd.edits import changes_of

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

ACTIONS = ["reject", "add header", "rewrite subject", "no action", "Greylist", "", "x\r\n", None]
TEXTS = [
    *(
        "",
        "x",
        "X-Spam",
        "Subject",
        "subject",
        "From",
        "a b",
        "x:",
        "a\r\n\r\nb",
        "a\rb",
        "\0",
        "ü",
    ),
    *("\u2028", "x" * 2000, "y " * 600, "b@x", "<b@x>", "<>", "b@x>\r\nDATA", "\x1b[31m", "0"),
]
KEYS = [
    *("milter", "remove_headers", "add_headers", "change_from", "add_rcpt", "del_rcpt", "reject"),
    *("no_action", "spam_header", "value", "order", "index", "dkim-signature", "symbols", "score"),
    *("messages", "smtp_message", "subject", "is_skipped", "Subject", "From", "X-New"),
]
NUMBERS = [0, 1, -1, 2, -2, 9, 1 << 40, -(1 << 63), 1e300, 0.5, True, False]


class Play(NamedTuple):
    """An answer."""

    body: bytes


def _value(chance: random.Random, depth: int) -> Any:
    kind = chance.random()
    if depth > 3 or kind < 0.4:
        return chance.choice(TEXTS)
    if kind < 0.6:
        return chance.choice(NUMBERS)
    if kind < 0.7:
        return [_value(chance, depth + 1) for _ in range(chance.randrange(4))]
    if kind < 0.72:
        return None
    return {chance.choice(KEYS): _value(chance, depth + 1) for _ in range(chance.randrange(4))}


def _block(chance: random.Random) -> dict[str, Any]:
    """Return a mostly valid ``milter`` block."""
    added = [
        chance.choice(TEXTS),
        {"value": chance.choice(TEXTS), "order": chance.choice(NUMBERS[:6])},
        [chance.choice(TEXTS), {"value": chance.choice(TEXTS)}],
        _value(chance, 2),
    ]
    block = {
        "add_headers": {chance.choice(KEYS): chance.choice(added) for _ in range(3)},
        "remove_headers": {chance.choice(KEYS): chance.choice(NUMBERS[:6]) for _ in range(3)},
        "add_rcpt": chance.sample(TEXTS, chance.randrange(2)),
        "spam_header": chance.choice(TEXTS),
        "change_from": chance.choice(TEXTS),
        "no_action": chance.random() < 0.5,
    }
    return {key: value for key, value in block.items() if chance.random() < 0.5}


def a_play(chance: random.Random) -> Play:
    """Return a random answer."""
    answer: dict[str, Any] = {chance.choice(KEYS): _value(chance, 0) for _ in range(2)}
    answer["action"] = chance.choice(ACTIONS)
    if chance.random() < 0.7:
        answer["milter"] = _block(chance)
    if chance.random() < 0.3:
        answer["dkim-signature"] = chance.choice([chance.choice(TEXTS), TEXTS])
    if chance.random() < 0.5:
        answer["subject"] = chance.choice(TEXTS)
    body = json.dumps(answer, ensure_ascii=chance.random() < 0.5).encode("utf-8", "replace")
    if chance.random() < 0.2:
        at = chance.randrange(len(body))
        body = body[:at] + chance.choice([b"", b"\xff", b"[" * 5000, chance.randbytes(3)])
    return Play(body)


def judge(play: Play, _: Sequence[int]) -> None:
    """Check the invariants."""
    parts = Parts(MESSAGE)
    try:
        answer = parse_answer(play.body)
        changes = changes_of(answer, (name for name, _ in parts.names_and_values), utf8=False)
    except RspamdGarbageError:
        return
    made = parts.edited(changes.edits, leading_space=False, removed=changes.removed)
    see_message(made)
    header = made.partition(b"\r\n\r\n")[0]
    if not header.isascii() or b"\0" in header:
        raise BrokenError(f"an octet that is not ASCII in {header!r}")
    for edit in changes.edits:
        if edit.address and parse_path(f"<{edit.address}>", strict=True) is None:
            raise BrokenError(f"the address {edit.address!r}")


PLAYS = Plays("answers of rspamd", a_play, judge)

if __name__ == "__main__":
    PLAYS.main(__doc__)
