"""MilterSession: pass the events of one client session to a milter, and get its verdicts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smtpd_fork.filters.milter_steps import (
    client_step,
    hello_step,
    message_steps,
    recipient_step,
    sender_step,
)
from smtpd_fork.hops.milter.connection import MilterConnection, MilterDownError
from smtpd_fork.hops.milter.conversation import Conversation
from smtpd_fork.hops.milter.events import CONNECT, HELO, PAUSE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from aiosmtpd.smtp import Envelope
    from aiosmtpd.smtp import Session as AnySession

    from smtpd_fork.hops.address import HopAddress
    from smtpd_fork.hops.milter.edited import Parts
    from smtpd_fork.hops.milter.events import Step
    from smtpd_fork.hops.milter.verdict import Verdict
    from smtpd_fork.message import Mail, Recipient

__all__ = ["MilterSession", "MilterTarget"]


@dataclass(frozen=True, slots=True)
class MilterTarget:
    """The address of a milter, and its timeouts.

    :ivar daemon_name: the macro ``{daemon_name}``; None: the name of the server
    :ivar connect: timeout of connecting, in seconds
    :ivar answer: timeout of an answer, in seconds; each progress message extends it
    :ivar total: timeout of all answers that one hook waits for, in seconds
    """

    address: HopAddress
    daemon_name: str | None
    connect: float
    answer: float
    total: float


class MilterSession:
    """Passes the events of one client session to a milter.

    One connection is used for all messages of a session, as in Sendmail and Postfix. If it is lost,
    a new one is opened, and the events that the milter needs are sent again. A connection is not
    reused for another session: version 6 of the protocol has a command for that (SMFIC_QUIT_NC),
    but libmilter ignores it and everything after it once a message was accepted or refused, and
    OpenDKIM loses the negotiated options with it and makes wrong signatures.

    :param room: maximum bytes of the milter's changes to a message
    :param ended: called after a connection is lost or closed
    :ivar loop: the event loop of the session
    :ivar envelope: the envelope of the current transaction, or None
    :ivar down: why the milter has failed in this transaction, or an empty string
    :ivar asked: whether events were sent, or a connection was opened for them, since it was False
    """

    def __init__(self, target: MilterTarget, room: int, ended: Callable[[], object]) -> None:
        self.loop = asyncio.get_running_loop()
        self.envelope: Envelope | None = None
        self.down = ""
        self.asked = False
        self._target = target
        self._room = room
        self._ended = ended
        self._connection: MilterConnection | None = None
        # The events that were sent on this connection.
        self._greeting_sent: object = None
        self._client_sent = False
        self._sender_sent = False
        self._recipients_sent = 0
        self._of_client: Verdict | None = None  # for the whole session
        self._until = 0.0

    # -- results -----------------------------------------------------------------------------------

    @property
    def verdict(self) -> Verdict | None:
        """The milter's verdict about the transaction, or None."""
        if self._of_client is not None or self._connection is None:
            return self._of_client
        return self._connection.conversation.verdict

    @property
    def refused(self) -> str:
        """The reply that refuses the last recipient, or an empty string."""
        return "" if self._connection is None else self._connection.conversation.refused

    @property
    def leading_space(self) -> bool:
        """Whether values of fields include the space after the colon."""
        return self._connection is not None and self._connection.conversation.leading_space

    @property
    def is_open(self) -> bool:
        """Whether there is a usable connection."""
        return self._connection is not None and not self._connection.conversation.fault

    @property
    def is_decided(self) -> bool:
        """Whether the milter has accepted or refused all messages of the session."""
        return self._of_client is not None

    async def probe(self) -> None:
        """Check that the milter can be reached, and speaks the protocol.

        :raises MilterDownError: it is unreachable, or breaks the protocol
        """
        self._until = self.loop.time() + self._target.total
        try:
            await self._send([])
        finally:
            self.close()

    # -- sending -----------------------------------------------------------------------------------

    async def client(self, server: Any, session: AnySession) -> None:
        """Send the client's connection."""
        self.begin(None)
        await self._try(lambda: self._send(self._client(server, session)))

    async def hello(self, server: Any, session: AnySession, name: str) -> None:
        """Send the client's greeting, and the events before it that were not sent yet."""
        self.begin(None)
        await self._try(lambda: self._send(self._greeting(server, session, name)))

    async def sender(self, server: Any, session: AnySession, mail: Mail) -> None:
        """Send the sender, and the events before it that were not sent yet."""
        await self._try(lambda: self._send(self._before(server, session, mail)))

    async def recipient(
        self, server: Any, session: AnySession, mail: Mail, recipient: Recipient
    ) -> None:
        """Send a recipient, and the events before it; :attr:`refused` has the answer."""

        async def send() -> None:
            await self._send(self._before(server, session, mail))
            if not self._recipients_sent and mail.recipients:  # the connection is a new one
                await self._send(map(recipient_step, mail.recipients))
            await self._send([recipient_step(recipient)], each_recipient=True)

        await self._try(send)
        self._recipients_sent += 1

    async def message(self, server: Any, session: AnySession, mail: Mail, parts: Parts) -> None:
        """Send the message, and the events before it; sets :attr:`verdict` or :attr:`down`."""
        await self._try(lambda: self._send(self._message(server, session, mail, parts)))

    def begin(self, envelope: Envelope | None) -> None:
        """Begin a transaction (None: only end the last one); an unfinished one is aborted."""
        self.envelope = envelope
        self.down = ""
        self._sender_sent, self._recipients_sent = False, 0
        connection = self._connection
        if connection is None:
            return
        if connection.conversation.reusable:
            connection.begin()
        else:
            self.close()

    # -- events: each is sent once on a connection -------------------------------------------------

    def _client(self, server: Any, session: AnySession) -> list[Step]:
        if self._client_sent:
            return []
        self._client_sent = True
        return [client_step(server, session, self._target.daemon_name or server.hostname)]

    def _greeting(self, server: Any, session: AnySession, name: str) -> list[Step]:
        steps, hello = self._client(server, session), (name, session.ssl is not None)
        if self._greeting_sent != hello:
            self._greeting_sent = hello
            steps.append(hello_step(session, name))
        return steps

    def _before(self, server: Any, session: AnySession, mail: Mail) -> list[Step]:
        """Return the events before the recipients that were not sent yet."""
        steps = self._greeting(server, session, mail.client.helo)
        if not self._sender_sent:
            self._sender_sent = True
            steps.append(sender_step(session, mail))
        return steps

    def _message(
        self, server: Any, session: AnySession, mail: Mail, parts: Parts
    ) -> Iterator[Step]:
        yield from self._before(server, session, mail)
        if not self._recipients_sent:
            yield from map(recipient_step, mail.recipients)
        yield PAUSE  # wait: a milter that decides by the envelope does not get the message
        assert self._connection is not None
        yield from message_steps(mail, parts, self._connection.conversation)

    # -- the connection ----------------------------------------------------------------------------

    async def _try(self, send: Callable[[], Any]) -> None:
        """Call *send*; call it once more if the milter had closed a kept connection before."""
        if self._of_client is not None or self.down:
            return
        self._until = self.loop.time() + self._target.total
        kept = self._connection
        progress = 0 if kept is None else kept.conversation.progress
        try:
            try:
                await send()
            except MilterDownError:
                if kept is None or not kept.lost or kept.conversation.progress != progress:
                    raise
                self.close()
                await send()
        except MilterDownError as error:
            self.down = str(error)
            self.close()
        except BaseException:
            self.close()
            raise
        self._note_decision()

    async def _send(self, steps: Iterable[Step], *, each_recipient: bool = False) -> None:
        if self.verdict is not None:
            return
        if self._connection is None:
            self.asked = True
            target = self._target
            self._connection = await MilterConnection.to(
                *(target.address, Conversation(self._room), self._ended),
                connect=target.connect,
                answer=target.answer,
            )
        connection, sent = self._connection, self._connection.sent
        try:
            await connection.send(steps, self._until, each_recipient=each_recipient)
        finally:
            self.asked |= connection.sent > sent

    def _note_decision(self) -> None:
        """Send nothing more in this session once the milter has decided about the client.

        As for Sendmail and Postfix, a refusal at connect or helo is one of the whole session: a
        client cannot evade it with another message, or another greeting.
        """
        connection, verdict = self._connection, self.verdict
        if connection is None or verdict is None:
            return
        decided_at = connection.conversation.decided_at
        if decided_at is CONNECT or decided_at is HELO:
            self._of_client = verdict
            self.close()

    def close(self) -> None:
        """Close the connection; the next events are sent on a new one."""
        connection, self._connection = self._connection, None
        self._client_sent = self._sender_sent = False
        self._greeting_sent, self._recipients_sent = None, 0
        if connection is not None:
            connection.close()
