"""Frequent: recognizes, in one search, the commands that nearly every client sends.

A short way through the grammar, not another one: whatever it matches, the framer, the words of the
command, :mod:`~smtpd_fork.smtp.path` and :mod:`~smtpd_fork.smtp.params` would have read the same
out of it (a property test says so). What it does not match takes the long way.
"""

from __future__ import annotations

import re

__all__ = ["FREQUENT_WORDS", "HELLO", "LONGEST", "MAIL", "RCPT", "WORD", "frequent"]

LONGEST = 256
"""Octets of a line that may take the short way: less than any limit of a command or a domain."""

FREQUENT_WORDS = {b"MAIL", b"RCPT", b"DATA", b"QUIT", b"RSET", b"NOOP", b"EHLO", b"HELO"}

# Possessive, so that whatever is fed is looked at once; but for a domain: if the whole of it is no
# longer than a label may be, no label is too long (see path.py).
_LOCAL = rb"[A-Za-z0-9_+=-]++(?:\.[A-Za-z0-9_+=-]++)*+"
_ADDRESS = rb"<(" + _LOCAL + rb"@(?=[A-Za-z0-9.-]{1,63}+>)[A-Za-z0-9]++(?:[.-][A-Za-z0-9]++)*+)>"
_PARAMS = rb"(?: SIZE=[0-9]{1,12}+)?+(?: BODY=(?:8BITMIME|7BIT))?+"

MAIL, RCPT, WORD, HELLO = 2, 3, 4, 6
"""``lastindex`` of the match: group 1 is the sender and 2 its parameters; 3 is a recipient; 4 is a
command that is a word; 5 is HELO or EHLO and 6 the name that comes with it."""

frequent = re.compile(
    rb"(?:MAIL FROM:" + _ADDRESS + rb"(" + _PARAMS + rb")"
    rb"|RCPT TO:" + _ADDRESS + rb"|(DATA|QUIT|RSET|NOOP)"
    rb"|(EHLO|HELO) ([A-Za-z0-9.\[\]:-]++))\r\n"
).match
"""Match one command at a position."""
