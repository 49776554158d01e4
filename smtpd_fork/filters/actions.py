"""Actions: the right-hand side of a rule for recipients.

An action is a string, because a map may have a million rules: the garbage collector would visit
each object of another type in every run, while all sessions wait. An action is one of

- :data:`OK`;
- a reply: ``550 5.1.1 text``;
- addresses separated by spaces, which replace the recipient; ``@example.com`` keeps the local part.
"""

from __future__ import annotations

import re

from smtpd_fork.dialogue.path import parse_path
from smtpd_fork.dialogue.reply import Reply

__all__ = ["OK", "addresses_of", "is_reply", "parse_action"]

OK = "OK"

_WORD = re.compile(r"(REJECT|DEFER)(?:[ \t]+(.*))?", re.IGNORECASE)
_CODE = re.compile(r"[45][0-9][0-9](?: |-(?!\S*@)|$)")
"""The code of a reply; does not match the address ``400-a@example.com``."""

_ENHANCED = re.compile(r"([45])\.[0-9]{1,3}\.[0-9]{1,3}(?: |$)")
_INSERTS = re.compile(r"\$[0-9{(]")
_BETWEEN = re.compile(r"[ \t,]+")

REJECTED = ("550", "5.1.1", "No such mailbox")
REJECTED_CLIENT = ("550", "5.7.1", "Not accepted from your network")
DEFERRED = ("450", "4.7.1", "Not accepted now, try again later")

LONGEST_SHOWN = 60
"""Maximum characters of an address in an error message."""

MOST_ADDRESSES = 1000
"""Maximum addresses that replace one recipient; as Postfix's virtual_alias_expansion_limit."""


def is_reply(action: str) -> bool:
    """Return whether an action is a reply that refuses the recipient."""
    return action[3:4] == " " and action[:3].isdigit()


def addresses_of(action: str, local: str, extension: str = "") -> list[str]:
    """Return the addresses of an action.

    :param local: the local part of the recipient, with its quotes
    :param extension: appended to the local parts that the action names
    """
    addresses = action.split(" ")
    if extension:
        addresses = [_extended(each, extension) for each in addresses]
    return [local + each if each[0] == "@" else each for each in addresses]


def _extended(address: str, extension: str) -> str:
    local, at, domain = address.rpartition("@")
    if not local:
        return address
    quote = '"' if local[-1] == '"' else ""
    return f"{local.removesuffix(quote)}{extension}{quote}{at}{domain}"


def parse_action(text: str, *, client: bool = False) -> str:
    """Return the action that the right-hand side of a rule means; an empty one means OK.

    :param client: whether the rule is for a network of clients, where addresses are an error
    :raises ValueError: *text* is not an action
    """
    if text.upper() in {"", OK}:
        return OK
    if match := _WORD.fullmatch(text):
        rejects = match[1].upper() == "REJECT"
        usual = (REJECTED_CLIENT if client else REJECTED) if rejects else DEFERRED
        return _reply(match[2] or "", usual)
    if _CODE.match(text):
        return _checked(text)
    if client:
        raise ValueError("the action for a network is OK, REJECT or DEFER")
    return _addresses(text)


def _reply(text: str, usual: tuple[str, str, str]) -> str:
    """Return the reply of REJECT or DEFER.

    :param text: the text after the word; it may begin with a code or an enhanced status code
    :param usual: code, enhanced status code and text to use where *text* has none
    """
    code, status, words = usual
    if _CODE.match(text):
        if text[0] != code[0]:
            raise ValueError(f"the code has to be {code[0]}yz")
        return _checked(text)
    if match := _ENHANCED.match(text):
        if match[1] != code[0]:
            raise ValueError(f"the enhanced status code has to be {code[0]}.y.z")
        return _checked(f"{code} {text}")
    return _checked(f"{code} {status} {text or words}")


def _checked(text: str) -> str:
    reply = Reply(text)
    if "\r\n" in reply:
        raise ValueError("the text is too long for one line of a reply")
    if len(reply) < len("550 x"):
        raise ValueError("a reply needs a text after its code")
    return str(reply)


def _addresses(text: str) -> str:
    addresses = list(dict.fromkeys(_BETWEEN.split(text.strip(", \t"))))
    for address in addresses:
        full = f"x{address}" if address[:1] == "@" else address
        if parse_path(f"<{full}>", postmaster=False) != (full, ""):
            reason = "neither OK, REJECT, DEFER nor an address"
            raise ValueError(f"{address[:LONGEST_SHOWN]!r} is {reason}")
        if _INSERTS.search(address):
            raise ValueError(f"{address[:LONGEST_SHOWN]!r}: groups of a match cannot be inserted")
    if len(addresses) > MOST_ADDRESSES:
        raise ValueError(f"more than {MOST_ADDRESSES} addresses")
    return " ".join(addresses)
