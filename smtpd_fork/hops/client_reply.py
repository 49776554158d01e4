"""client_reply: turn a reply of the next hop into a reply to our client."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smtpd_fork.hops.replies import HopReply

__all__ = ["client_reply", "printable"]

LONGEST_TEXT = 400
"""Maximum characters of the hop's text in our reply, to keep the reply on one line."""

CLOSING = 421
NOT_OURS = frozenset({530, 534, 535, 538})
"""The hop requires TLS, AUTH or other credentials (RFC 4954 6): not a fault of our client."""

_ENHANCED = re.compile(r"([245])\.[0-9]{1,3}\.[0-9]{1,3}(?:$|[ \t]+)")
_USUAL = re.compile(r"2\.[0-9]{1,3}\.[0-9]{1,3} [!-~](?:[ -~]{0,398}[!-~])?")
"""The text of a 250 that is passed on without changes."""

_NOT_PRINTABLE = re.compile(r"[^ -~]+")


def printable(text: str) -> str:
    """Return an untrusted text as one line of at most 400 printable ASCII characters."""
    return _NOT_PRINTABLE.sub("?", text)[:LONGEST_TEXT].strip()


def client_reply(reply: HopReply) -> str:
    """Return the reply to our client for a hop's reply to a message or a recipient.

    2yz becomes 250. 421 becomes 451, because our own connection stays open; so do 3yz, which has no
    meaning here, and replies that require TLS or AUTH. An enhanced status code (RFC 3463) that
    contradicts the code is replaced.
    """
    if reply.code == 250 and len(reply.lines) == 1 and _USUAL.fullmatch(reply.lines[0]):  # noqa: PLR2004 - RFC 5321 4.2.3
        return f"250 {reply.lines[0]}"
    code, texts, enhanced = reply.code, [], ""
    for line in reply.lines:
        match = _ENHANCED.match(line)
        if match is not None:
            enhanced = enhanced or match[0].strip()
            line = line[match.end() :]  # noqa: PLW2901 - each line may repeat the enhanced code
        texts.append(line)
    kind = code // 100
    if kind == 2:  # noqa: PLR2004 - RFC 5321 4.2.1
        code = 250
    elif kind == 3 or code == CLOSING or code in NOT_OURS:  # noqa: PLR2004 - as above
        code, kind = 451, 4
        if reply.code in NOT_OURS:
            enhanced = "4.7.0"
    if enhanced[:1] != str(kind):
        enhanced = f"{kind}.0.0"
    text = printable(" ".join(text for text in texts if text))
    return f"{code} {enhanced} {text or ('Ok' if kind == 2 else 'Refused')}"  # noqa: PLR2004 - as above
