"""Sink: the base class of handlers that deliver messages; Discard, the simplest sink."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import Envelope
from aiosmtpd.smtp import Session as AnySession

from smtpd_fork.message import Mail, Replies, combined
from smtpd_fork.message.results import final_reply, per_recipient
from smtpd_fork.peer_address import describe

if TYPE_CHECKING:
    from smtpd_fork.hops.peer_status import PeerStatus

__all__ = ["FAILED", "Discard", "Sink", "answer", "deliver_in_time", "key_of"]

FAILED = "451 4.3.0 The message could not be delivered, try again later"
TOO_SLOW = "451 4.3.0 The message could not be delivered in time, try again later"

log = logging.getLogger("smtpd_fork.sinks")

DISCARDED = "250 2.0.0 Ok: discarded"

THREAD_BYTES = 1 << 18
"""Bytes of a message above which its hash is computed in a thread; below, it takes a fraction of a
millisecond."""


class Sink:
    """A handler at the end of a chain. Subclasses implement :meth:`deliver`; all else is optional.

    It also runs under aiosmtpd, as a handler with ``handle_DATA``.

    :cvar supports_dsn: whether the sink passes on the parameters of DSN (RFC 3461: RET, ENVID,
        NOTIFY, ORCPT), or sends the notifications itself; otherwise DSN is not offered
    :cvar supports_binarymime: whether the sink keeps every octet of a message with BODY=BINARYMIME
        (RFC 3030), which does not consist of lines; otherwise BINARYMIME is not offered
    :cvar relays: whether the sink passes messages on to any destination, so that a filter before it
        has to refuse recipients that a client may not send to
    """

    supports_dsn = False
    supports_binarymime = False
    relays = False
    hostname = ""
    """The name of this server (``--hostname``); set before the first message."""
    time_limit = 295.0
    """Seconds after which :meth:`deliver` is cancelled and the client gets 451. The server reduces
    it to 5 s less than ``--handler-timeout`` if it is longer."""

    @property
    def destination(self) -> str:
        """The destination of messages, for the log."""
        return type(self).__name__

    def check(self) -> None:
        """Check whether :meth:`prepare` would succeed, without creating anything.

        :raises CannotCreateError: it would fail
        """

    def prepare(self) -> None:
        """Create what the sink needs; called before the first message, with dropped privileges.

        :raises CannotCreateError: it cannot be created
        """

    async def close(self) -> None:
        """Finish the messages in progress; called after the last message."""

    @property
    def status(self) -> PeerStatus | None:
        """The state of the server that messages go to; None if there is no server."""
        return None

    async def deliver(self, mail: Mail) -> Replies:
        """Deliver a message.

        :returns: 2yz when the message is safe, otherwise 4yz or 5yz: one reply for all recipients,
            or a list with one reply for each of ``mail.recipients``, in order
        """
        raise NotImplementedError

    async def handle_DATA(self, server: Any, session: AnySession, envelope: Envelope) -> Any:
        """Deliver a message that this server or aiosmtpd has received."""
        mail = Mail.of(server, session, envelope)
        try:
            return answer(await deliver_in_time(self, mail), mail, server, session)
        except Exception:
            if hasattr(session, "lmtp"):
                raise  # this server logs the error, and answers 451
            log.exception("[%s] %s failed, the client gets 451", mail.id, type(self).__name__)
            return answer([FAILED] * len(mail.recipients), mail, server, session)


async def deliver_in_time(sink: Sink, mail: Mail) -> Replies:
    """Deliver a message within the time limit of the sink.

    :raises TypeError: the sink did not return replies; the text contains its class
    """
    time_limit = _TimeLimit(sink.time_limit)
    try:
        with time_limit:
            replies = await _deliver(sink, mail)
    except TimeoutError:
        if not time_limit.expired:
            raise  # raised by the sink itself
        client = describe(mail.client.peer)
        log.warning(
            "[%s] %s took longer than %g s, the client gets 451; client=%s",
            *(mail.id, type(sink).__name__.lower(), sink.time_limit, client),
            extra={"queue_id": mail.id, "client": client},
        )
        return TOO_SLOW
    try:
        one = isinstance(replies, str)
        return final_reply(replies) if one else per_recipient(replies, len(mail.recipients))
    except TypeError as error:
        raise TypeError(f"{type(sink).__name__}.{error}") from None


class _TimeLimit:
    """A faster ``asyncio.timeout()``, because it is used for every message.

    :ivar expired: whether the task was cancelled because the time limit has expired
    """

    __slots__ = ("_cancelling", "_seconds", "_task", "_timer", "expired")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.expired = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._timer = task.get_loop().call_later(self._seconds, self._expire)

    def _expire(self) -> None:
        self.expired = True
        self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, error: object, _: object) -> None:
        self._timer.cancel()
        if not self.expired:
            return
        # If another task has cancelled this one as well, the CancelledError must be kept.
        only_here = self._task.uncancel() <= self._cancelling
        if only_here and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise TimeoutError from None


async def _deliver(sink: Sink, mail: Mail) -> Replies:
    """Call ``deliver()``; turn a CancelledError or SystemExit of its own into a RuntimeError."""
    name = f"{type(sink).__name__}.deliver()"
    delivery = sink.deliver(mail)
    if not inspect.isawaitable(delivery):
        raise TypeError(f"{name} must be async def: it returned {delivery!r:.200}")
    try:
        return await delivery
    except (asyncio.CancelledError, SystemExit) as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        raise RuntimeError(f"{name} raised {type(error).__name__}") from error


def answer(replies: Replies, mail: Mail, server: Any, session: AnySession) -> Any:
    """Return the result of the hook ``handle_DATA``: all replies in LMTP, one in SMTP.

    :param replies: the result of :func:`deliver_in_time`
    """
    if isinstance(replies, str):
        return replies
    if getattr(session, "lmtp", False):
        return replies
    if not hasattr(session, "lmtp") and hasattr(server, "smtp_LHLO"):
        return "\r\n".join(replies)  # aiosmtpd's LMTP sends the text unchanged
    return combined(replies, mail.recipients)


async def key_of(mail: Mail) -> str:
    """Return the idempotency key of a message; for a large one it is computed in a thread."""
    if len(mail.content) > THREAD_BYTES:
        return await asyncio.to_thread(getattr, mail, "key")
    return mail.key


class Discard(Sink):
    """Accepts and discards every message, for tests and measurements."""

    supports_binarymime = True
    destination = "nowhere: every message is discarded"

    async def deliver(self, mail: Mail) -> Replies:
        """Discard a message."""
        return DISCARDED

    async def handle_DATA(self, server: Any, session: AnySession, envelope: Envelope) -> str:
        """Discard a message without parsing it."""
        return DISCARDED
