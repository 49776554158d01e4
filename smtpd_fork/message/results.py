"""Replies to a message of several recipients, as one reply where the protocol has room for one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from smtpd_fork.dialogue.reply import Reply, is_plain
from smtpd_fork.message.mail import Recipient

__all__ = ["Replies", "combined", "final_reply", "per_recipient"]

MOST_NAMES = 5
"""Recipients that the text of a reply names."""

Replies: TypeAlias = str | Sequence[str]
"""What a sink answers: a reply for all recipients, or one for each, in order."""


def per_recipient(replies: Replies, count: int) -> list[str]:
    """Return a reply for each of *count* recipients.

    :raises TypeError: *replies*, or one of them, is no reply to a message; there is another number
    """
    if isinstance(replies, (str, bytes)) or not isinstance(replies, Sequence):
        return [final_reply(replies)] * count
    if len(replies) != count:
        raise TypeError(f"deliver() must return one reply, or {count}: not {len(replies)}")
    return [final_reply(reply) for reply in replies]


def final_reply(reply: Any) -> str:
    """Return what a sink answers, as a reply to a message: 2yz, 4yz or 5yz.

    :raises TypeError: it is none
    """
    if isinstance(reply, str):
        if is_plain(reply):
            return reply
        with suppress(ValueError):
            if (whole := Reply(reply))[0] != "3":
                return whole
    raise TypeError(f"deliver() must return a reply such as '250 2.0.0 Ok', not {reply!r:.200}")


def combined(replies: Sequence[str], recipients: Sequence[Recipient]) -> str:
    """Return the one reply that SMTP has room for.

    If all are 2yz it is the first one. Else it is the first of 4yz, so that the client sends the
    message again; else the first of 5yz, with the addresses that it concerns: a message that was
    not stored for some recipient is never answered 250.
    """
    if len(replies) == 1:
        return replies[0]
    for digit in "45":
        refused = [index for index, reply in enumerate(replies) if reply[:1] == digit]
        if refused:
            reply = replies[refused[0]]
            if digit == "4":
                return reply
            names = [recipients[index].address for index in refused]
            if len(names) > MOST_NAMES:
                names[MOST_NAMES:] = [f"{len(names) - MOST_NAMES} more"]
            return Reply(f"{reply}\n(for {', '.join(names)})")
    return replies[0]
