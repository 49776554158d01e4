"""Combine the replies for the recipients of a message if the protocol allows only one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from smtpd_fork.dialogue.reply import Reply, is_plain
from smtpd_fork.message.mail import Recipient

__all__ = ["Replies", "combined", "final_reply", "per_recipient"]

MOST_NAMES = 5
"""Maximum of recipients that the text of a reply names."""

Replies: TypeAlias = str | Sequence[str]
"""The result of a sink: a reply for all recipients, or a sequence with a reply for each, in
order."""


def per_recipient(replies: Replies, count: int) -> list[str]:
    """Return a reply for each of *count* recipients.

    :raises TypeError: a reply is not a valid reply to a message, or the number of replies is wrong
    """
    if isinstance(replies, (str, bytes)) or not isinstance(replies, Sequence):
        return [final_reply(replies)] * count
    if len(replies) != count:
        raise TypeError(f"deliver() must return one reply, or {count}: not {len(replies)}")
    return [final_reply(reply) for reply in replies]


def final_reply(reply: Any) -> str:
    """Return the result of a sink as a reply to a message: 2yz, 4yz or 5yz.

    :raises TypeError: *reply* is not such a reply
    """
    if isinstance(reply, str):
        if is_plain(reply):
            return reply
        with suppress(ValueError):
            if (whole := Reply(reply))[0] != "3":
                return whole
    raise TypeError(f"deliver() must return a reply such as '250 2.0.0 Ok', not {reply!r:.200}")


def combined(replies: Sequence[str], recipients: Sequence[Recipient]) -> str:
    """Return the reply for SMTP, which has one reply for all recipients.

    If all replies are 2yz, it is the first. Otherwise it is the first 4yz, so that the client sends
    the message again. Otherwise it is the first 5yz, with the addresses that were rejected. A
    message that was not stored for some recipient is never answered with 250.
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
