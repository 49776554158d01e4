"""Parse the answer of a policy server: an action of Postfix's access(5)."""

from __future__ import annotations

import re
from typing import NamedTuple

from smtpd_fork.hops.client_reply import CLOSING, client_reply
from smtpd_fork.hops.replies import HopReply

__all__ = ["DEFERRING", "Action", "parse_action"]

DEFERRING = frozenset({"DEFER_IF_PERMIT", "DEFER_IF_REJECT"})
"""Actions whose result depends on later answers."""

_REPLIES = {
    "REJECT": (554, "5.7.1", "Access denied"),
    "DEFER": (450, "4.7.1", "Not accepted now, try again later"),
}
_REPLIES |= dict.fromkeys(DEFERRING, _REPLIES["DEFER"])
"""Default codes and texts of actions that refuse; the codes are Postfix's."""

_CODE = re.compile(r"([45][0-9][0-9])(?:[ \t]+(.*))?")
_ENHANCED = re.compile(r"([45])\.[0-9]{1,3}\.[0-9]{1,3}(?: |$)")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class Action(NamedTuple):
    """An action.

    :ivar name: the name; ``OK`` for DUNNO and PERMIT as well, ``REJECT`` for all actions that
        refuse immediately
    :ivar text: the text after the name
    :ivar reply: the reply of an action that refuses, otherwise empty
    """

    name: str
    text: str = ""
    reply: str = ""


def parse_action(text: str) -> Action | None:
    """Return the action in a policy server's answer; None if it is not an action."""
    if match := _CODE.fullmatch(text):
        return Action("REJECT", match[2] or "", _reply(int(match[1]), match[2] or ""))
    word, _, rest = text.replace("\t", " ").partition(" ")
    name, rest = word.upper(), rest.strip()
    if name in {"OK", "DUNNO", "PERMIT"} or (text.isascii() and text.isdigit()):
        return Action("OK")
    if not _NAME.fullmatch(word):
        return None
    if name not in _REPLIES:
        return Action(name, rest)
    reply = _reply(_REPLIES[name][0], rest, name)
    return Action("REJECT" if name == "DEFER" else name, rest, reply)


def _reply(code: int, text: str, name: str = "") -> str:
    """Return the reply of a refusal, on one line of printable text."""
    kind = str(code)[0]
    usual = _REPLIES[name or ("REJECT" if kind == "5" else "DEFER")]
    if (match := _ENHANCED.match(text)) is None or match[1] != kind:
        text = f"{kind}.7.1 {text[match.end() :] if match else text}".rstrip()
    if len(text.split(" ", 1)) == 1:
        text = f"{text} {usual[2]}"
    # client_reply() turns 421 into 451, but a policy server's 421 is to close the connection.
    closing = code == CLOSING
    reply = client_reply(HopReply(450 if closing else code, (text,)))
    return f"{CLOSING}{reply[3:]}" if closing else reply
