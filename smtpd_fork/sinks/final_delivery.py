"""Final delivery: what the sinks for mailboxes of this machine have in common.

They add ``Delivered-To`` (RFC 5321 4.4 leaves it to the delivering system). A message that has it
already for the same recipient goes round in a loop. Where the mailboxes of a message's recipients
differ, each recipient gets an answer: a quota that is used up is one recipient's matter.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from smtpd_fork.gate import ClientLine, client_reporter
from smtpd_fork.message import Mail, Replies, earlier_mailboxes
from smtpd_fork.message.loops import has_long_header
from smtpd_fork.message.mailbox import mailbox_of
from smtpd_fork.message.results import per_recipient
from smtpd_fork.message.trace import final_fields
from smtpd_fork.peer_address import describe
from smtpd_fork.sinks.base import TOO_SLOW, Sink

if TYPE_CHECKING:
    from smtpd_fork.sinks.mailbox_path import MailboxPath

__all__ = [
    "NO_MAILBOX", "FinalSink", "copies", "in_parallel", "loggable", "note_stored",
    "storage_reply", "stored_reply", "to_each_mailbox",
]  # fmt: skip

LOOP = "554 5.4.6 Mail loop: the message has been delivered to this mailbox before"

NO_MAILBOX = "550 5.1.1 No such mailbox"

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""The disk, the user's quota, or the largest file allowed."""

LONGEST_LOGGED = 200
"""Characters of a stranger's word, or of a command's output, in a line of the log."""


Store: TypeAlias = Callable[[tuple[str, ...], bytes, bytes, Mail, int], Coroutine[Any, Any, str]]
"""Delivers to one mailbox: the names of its path, head and content, the message, and how many
recipients it is for."""


class FinalSink(Sink):
    """A sink that delivers to mailboxes of this machine.

    :ivar log: where its lines go
    """

    log = logging.getLogger("smtpd_fork.sinks")

    def __init__(self) -> None:
        self._reporter = client_reporter()

    async def deliver(self, mail: Mail) -> Replies:
        """Deliver a message, except to recipients whose mailbox it was in before."""
        looping = await _looping(mail)
        if not looping:
            return await self.deliver_here(mail)
        self.report(mail, "mail loop", f"Delivered-To {loggable(', '.join(looping))}")
        rest = [each for each in mail.recipients if each.address not in looping]
        if not rest:
            return LOOP
        replies = iter(per_recipient(await self.deliver_here(mail.to(rest)), len(rest)))
        return [LOOP if each.address in looping else next(replies) for each in mail.recipients]

    async def deliver_here(self, mail: Mail) -> Replies:
        """Deliver a message that is in no loop; as :meth:`deliver`."""
        raise NotImplementedError

    def report(self, mail: Mail, what: str, reason: str, *, kind: str = "") -> None:
        """Log why a message was not delivered.

        :param what: happened; constant, as lines of a client are gathered by it
        :param kind: lines with the same *what* that are gathered apart
        """
        line = ClientLine.of(
            self.log, logging.ERROR, mail.client.peer, what, reason, kind=kind, **_fields(mail)
        )
        self._reporter.note(line)

    async def close(self) -> None:
        """Write the lines of the log that were gathered."""
        self._reporter.close()


async def _looping(mail: Mail) -> Sequence[str]:
    """Return the recipients whose mailbox the message was in before."""
    if has_long_header(mail.content):
        before = await asyncio.to_thread(earlier_mailboxes, mail.content)
    else:
        before = earlier_mailboxes(mail.content)
    if not before:
        return ()
    addresses = (each.address for each in mail.recipients)
    return [each for each in addresses if mailbox_of(each).key in before]


def copies(mail: Mail, groups: Sequence[Sequence[str]]) -> tuple[list[bytes], bytes]:
    """Return the message for several mailboxes: a head for each, and the content below it.

    :param groups: the recipients of each mailbox
    """
    trace, content = mail.relayed()
    return [final_fields(mail.sender, each) + trace for each in groups], content


async def in_parallel(deliveries: Sequence[Coroutine[Any, Any, str]]) -> list[str]:
    """Run deliveries of one message at the same time; return their replies.

    :raises asyncio.CancelledError: it was cancelled, and no delivery was finished before. If some
        were, their replies stay, and the others are 451: their recipients alone have the message
        twice, if the client sends it again.
    """
    if len(deliveries) == 1:
        return [await deliveries[0]]
    tasks = [asyncio.ensure_future(each) for each in deliveries]
    try:
        await asyncio.wait(tasks)
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        if all(task.cancelled() for task in tasks):
            raise
    errors = [error for task in tasks if not task.cancelled() and (error := task.exception())]
    if errors:
        raise errors[0]
    return [TOO_SLOW if task.cancelled() else task.result() for task in tasks]


async def to_each_mailbox(mail: Mail, location: MailboxPath, store: Store) -> Replies:
    """Deliver a message to the mailbox of each recipient, once to each mailbox.

    :param location: the mailboxes
    :param store: delivers to one of them, and returns the reply
    """
    if not location.varies:
        return await store((), *mail.delivered(), mail, len(mail.recipients))
    indices: dict[tuple[str, ...], list[int]] = {}
    for index, recipient in enumerate(mail.recipients):
        indices.setdefault(location.names(recipient.address), []).append(index)
    heads, content = copies(
        mail, [[mail.recipients[index].address for index in each] for each in indices.values()]
    )
    answers = await in_parallel(
        [
            store(names, head, content, mail, len(each))
            for (names, each), head in zip(indices.items(), heads, strict=True)
        ]
    )
    if len(answers) == 1:
        return answers[0]
    replies = [""] * len(mail.recipients)
    for each, answer in zip(indices.values(), answers, strict=True):
        for index in each:
            replies[index] = answer
    return replies


def storage_reply(error: OSError) -> str:
    """Return the reply to a message that a file system did not take."""
    if error.errno in _NO_SPACE:
        return "452 4.3.1 Insufficient system storage, try again later"
    return "451 4.3.0 The message could not be stored, try again later"


def stored_reply(mail: Mail) -> str:
    """Return the reply to a message that is on the disk."""
    return f"250 2.0.0 Ok: queued as {mail.id}"


def note_stored(
    log: logging.Logger, mail: Mail, size: int, recipients: int, how: str = "queued"
) -> None:
    """Log a message that is safe.

    :param size: in bytes
    :param recipients: of the file, or of the run of a command
    """
    if not log.isEnabledFor(logging.INFO):
        return
    sender, client = loggable(mail.sender), describe(mail.client.peer)
    about = {"client": client, "from": sender, "to": recipients, "size": size}
    log.info(
        "[%s] %s: from=<%s> to=%d size=%d client=%s%s",
        *(mail.id, how, sender, recipients, size, client, mail.log_words),
        extra={**_fields(mail), **about, **mail.log_facts},
    )


def _fields(mail: Mail) -> dict[str, str]:
    """Return the fields of a log entry about a message."""
    session = mail.id.rpartition("-")[0]
    return {"session": session, "queue_id": mail.id} if session else {"queue_id": mail.id}


def loggable(text: str) -> str:
    """Return a stranger's word as one log line can hold it."""
    return ascii(text)[1:-1]
