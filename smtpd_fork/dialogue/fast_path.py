"""The fast path: recognizes, with one search, the commands that nearly all clients send.

It accepts a part of the grammar: whatever it matches, the framer,
:mod:`~smtpd_fork.dialogue.dispatch`, :mod:`~smtpd_fork.dialogue.path` and
:mod:`~smtpd_fork.dialogue.params` parse with the same result (a property test checks it). They also
handle all other input.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from smtpd_fork.dialogue.commands import State
from smtpd_fork.dialogue.dispatch import act_on_line
from smtpd_fork.dialogue.params import parse_params
from smtpd_fork.dialogue.waiting import Failed

if TYPE_CHECKING:
    from smtpd_fork.dialogue.command_table import Row
    from smtpd_fork.dialogue.dialogue import Dialogue
    from smtpd_fork.dialogue.waiting import Result

__all__ = ["EVENTS_A_TURN", "FREQUENT_WORDS", "LONGEST", "frequent", "process_frequent"]

EVENTS_A_TURN = 64
"""Pipelined commands that are processed before other sessions: about 1 ms."""

LONGEST = 256
"""Maximum octets of a line on the fast path: less than any limit of a command or a domain."""

FREQUENT_WORDS = {b"MAIL", b"RCPT", b"DATA", b"QUIT", b"RSET", b"NOOP", b"EHLO", b"HELO"}

# The quantifiers are possessive, so that each byte is read once, except in a domain: if the whole
# domain is no longer than the maximum of a label, no label is too long (see path.py).
_LOCAL = rb"[A-Za-z0-9_+=-]++(?:\.[A-Za-z0-9_+=-]++)*+"
_ADDRESS = rb"<(" + _LOCAL + rb"@(?=[A-Za-z0-9.-]{1,63}+>)[A-Za-z0-9]++(?:[.-][A-Za-z0-9]++)*+)>"
_PARAMS = rb"(?: SIZE=[0-9]{1,12}+)?+(?: BODY=(?:8BITMIME|7BIT))?+"

_MAIL, _RCPT, _HELLO = 2, 3, 6
"""``lastindex`` of the match: groups 1 and 2 are the sender and its parameters; 3 is a recipient; 4
is a command without an argument; 5 is HELO or EHLO and 6 its name."""

frequent = re.compile(
    rb"(?=[^\n]{5,%d}+\n)(?:MAIL FROM:" % (LONGEST - 1) + _ADDRESS + rb"(" + _PARAMS + rb")"
    rb"|RCPT TO:" + _ADDRESS + rb"|(DATA|QUIT|RSET|NOOP)"
    rb"|(EHLO|HELO) ([A-Za-z0-9.\[\]:-]++))\r\n"
).match
"""Match a command at a position."""

_GREETING, _LEAVING = State.GREETING, State.LEAVING
_FOUR = ord("4")


def process_frequent(dialogue: Dialogue, data: bytes) -> bytes:
    """Process the frequent commands at the start of *data*; return the data after them."""
    position, turn, length = 0, 0, len(data)
    while (match := frequent(data, position)) is not None:
        position = match.end()
        try:
            result = _act_on(dialogue, match)
            if type(result) is bytes and result[0] < _FOUR and dialogue.state < _LEAVING:
                dialogue.out += result  # the usual case: no limit applies
                dialogue.row.replies[result[0]] += 1
            elif result is not None:
                dialogue.line = match[0][:-2]
                dialogue.act(result)
        except Exception as error:  # noqa: BLE001 - logged and answered by the host
            dialogue.waiting = Failed(error)
        if position == length:
            return b""
        turn += 1
        if turn == EVENTS_A_TURN or dialogue.last_reply is not None or dialogue.tarpit:
            break
        if dialogue.waiting is not None or dialogue.state >= _GREETING:
            break
    return data[position:]


def _act_on(dialogue: Dialogue, match: re.Match[bytes]) -> Result:
    """Carry out a frequent command if it is in sequence; return the result."""
    kind = match.lastindex
    if kind == _RCPT:
        row = dialogue.row = dialogue.rows[b"RCPT"]
        return row.refused[dialogue.state] or row.run(dialogue, match[3].decode("ascii"), {})
    if kind == _MAIL:
        row = dialogue.row = dialogue.rows[b"MAIL"]
        refused = row.refused[dialogue.state]
        if refused is None and match[2]:
            return _mail_with_params(dialogue, row, match)
        return refused or row.run(dialogue, match[1].decode("ascii"), {})
    if kind == _HELLO:
        row = dialogue.row = dialogue.rows[match[5]]
        return row.refused[dialogue.state] or row.run(dialogue, match[6].decode("ascii"))
    row = dialogue.row = dialogue.rows[match[4]]
    return row.refused[dialogue.state] or row.run(dialogue)


def _mail_with_params(dialogue: Dialogue, row: Row, match: re.Match[bytes]) -> Result:
    if not dialogue.session.extended_smtp:
        return act_on_line(dialogue, match[0][:-2])
    params = parse_params(match[2].decode("ascii")) or {}
    return row.run(dialogue, match[1].decode("ascii"), params)
