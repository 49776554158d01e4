"""FinalSink: the base class of sinks that deliver to mailboxes on this machine.

These sinks add ``Delivered-To`` (RFC 5321 4.4 leaves such fields to the delivering system). A
message that already has this field for the same recipient is in a mail loop. If the recipients of a
message have different mailboxes, each recipient gets its own reply: an exceeded quota concerns only
one of them.
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
    "NO_MAILBOX",
    "FinalSink",
    "copies",
    "in_parallel",
    "log_stored",
    "loggable",
    "storage_reply",
    "stored_reply",
    "to_each_mailbox",
]  # fmt: skip

LOOP = "554 5.4.6 Mail loop: the message has been delivered to this mailbox before"

NO_MAILBOX = "550 5.1.1 No such mailbox"

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""The disk is full, or the quota or the maximum size of a file is exceeded."""

LONGEST_LOGGED = 200
"""Maximum characters of a command's output in a log line."""

Store: TypeAlias = Callable[[tuple[str, ...], bytes, bytes, Mail, int], Coroutine[Any, Any, str]]
"""A function that delivers to one mailbox and returns the reply. Its arguments are the components
of the path, the head and the content to store, the message, and the number of its recipients."""


class FinalSink(Sink):
    """A sink that delivers to mailboxes on this machine.

    :cvar log: the logger of the sink
    """

    log = logging.getLogger("smtpd_fork.sinks")

    def __init__(self) -> None:
        self._reporter = client_reporter()

    async def deliver(self, mail: Mail) -> Replies:
        """Deliver a message, except to recipients to whom it was delivered before."""
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
        """Deliver a message that is not in a mail loop; otherwise as :meth:`deliver`."""
        raise NotImplementedError

    def report(self, mail: Mail, what: str, reason: str, *, kind: str = "") -> None:
        """Log why a message was not delivered.

        :param what: the event, a constant text: repeated lines with the same event are counted
        :param kind: distinguishes lines with the same *what* that are counted separately
        """
        line = ClientLine.of(
            self.log, logging.ERROR, mail.client.peer, what, reason, kind=kind, **_fields(mail)
        )
        self._reporter.note(line)

    async def close(self) -> None:
        """Write the pending log lines."""
        self._reporter.close()


async def _looping(mail: Mail) -> Sequence[str]:
    """Return the recipients to whom the message was delivered before."""
    if has_long_header(mail.content):
        before = await asyncio.to_thread(earlier_mailboxes, mail.content)
    else:
        before = earlier_mailboxes(mail.content)
    if not before:
        return ()
    addresses = (each.address for each in mail.recipients)
    return [each for each in addresses if mailbox_of(each).key in before]


def copies(mail: Mail, groups: Sequence[Sequence[str]]) -> tuple[list[bytes], bytes]:
    """Return the message for several mailboxes: a head for each mailbox, and the common content.

    :param groups: the recipients of each mailbox
    """
    trace, content = mail.relayed()
    return [final_fields(mail.sender, each) + trace for each in groups], content


async def in_parallel(deliveries: Sequence[Coroutine[Any, Any, str]]) -> list[str]:
    """Run the deliveries of a message concurrently; return their replies.

    If it is cancelled after some deliveries have finished, their replies are returned, with 451 for
    the others. If the client sends the message again to all recipients, because SMTP has only one
    reply for all, then only the recipients of finished deliveries get it twice.

    :raises asyncio.CancelledError: it was cancelled before any delivery has finished
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
    """Deliver a message to the mailboxes of all recipients, once to each mailbox.

    :param location: the path of the mailboxes
    :param store: a function that delivers to one mailbox
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
    """Return the reply to a message that could not be written."""
    if error.errno in _NO_SPACE:
        return "452 4.3.1 Insufficient system storage, try again later"
    return "451 4.3.0 The message could not be stored, try again later"


def stored_reply(mail: Mail) -> str:
    """Return the reply to a message that is stored on disk."""
    return f"250 2.0.0 Ok: queued as {mail.id}"


def log_stored(
    log: logging.Logger, mail: Mail, size: int, recipients: int, how: str = "queued"
) -> None:
    """Log that a message was stored or delivered.

    :param size: size in bytes
    :param recipients: number of recipients of the file, or of the run of a command
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
    """Return an untrusted text in printable ASCII for a log line."""
    return ascii(text)[1:-1]
