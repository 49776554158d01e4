"""Talk: what one milter learns of one session, and what it decides."""

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
from smtpd_fork.hops.milter.verdict import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from aiosmtpd.smtp import Envelope
    from aiosmtpd.smtp import Session as AnySession

    from smtpd_fork.hops.address import HopAddress
    from smtpd_fork.hops.milter.edited import Parts
    from smtpd_fork.hops.milter.events import Step
    from smtpd_fork.hops.milter.verdict import Verdict
    from smtpd_fork.message import Mail, Recipient

__all__ = ["MilterTarget", "Talk"]


@dataclass(frozen=True, slots=True)
class MilterTarget:
    """A milter, and how long it may take.

    :ivar daemon_name: for the macro ``{daemon_name}``; None: the name of the server
    :ivar connect: seconds for the connection
    :ivar answer: seconds for each answer; those of progress extend it
    :ivar total: seconds for all that one hook waits for
    """

    address: HopAddress
    daemon_name: str | None
    connect: float
    answer: float
    total: float


class Talk:
    """What one milter learns of one session.

    One connection serves all messages of a session, as with Sendmail and Postfix; a lost one is
    made anew, and what the milter has to know is sent again. It does not serve the next session:
    version 6 has a command for that (SMFIC_QUIT_NC), but libmilter ignores it, and all behind it,
    after a message that was accepted or refused; and OpenDKIM forgets by it what was negotiated,
    and makes wrong signatures.

    :param room: bytes that a milter may change of a message
    :param ended: is called once a connection is lost or closed
    :ivar loop: of the session
    :ivar envelope: of the transaction that the milter has learned of, or None
    :ivar down: why the milter has failed in this transaction; empty if it has not
    :ivar connections: how many are open, one at most
    """

    def __init__(self, target: MilterTarget, room: int, ended: Callable[[], object]) -> None:
        self.loop = asyncio.get_running_loop()
        self.envelope: Envelope | None = None
        self.down = ""
        self._target = target
        self._room = room
        self._ended = ended
        self._connection: MilterConnection | None = None
        self._hello: object = None  # what was sent of the client's greeting
        self._told_client = False
        self._told_sender = False
        self._recipients_told = 0
        self._accepted: Verdict | None = None  # for the whole session
        self._until = 0.0

    # -- what came of it ---------------------------------------------------------------------------

    @property
    def verdict(self) -> Verdict | None:
        """What the milter has decided about the transaction so far."""
        if self._accepted is not None or self._connection is None:
            return self._accepted
        return self._connection.conversation.verdict

    @property
    def refused(self) -> str:
        """The reply to the recipient that was sent last; empty if it was accepted."""
        return "" if self._connection is None else self._connection.conversation.refused

    @property
    def leading_space(self) -> bool:
        """Whether the values of fields keep the space behind the colon."""
        return self._connection is not None and self._connection.conversation.leading_space

    @property
    def is_open(self) -> bool:
        """Whether there is a connection."""
        return self._connection is not None and not self._connection.conversation.fault

    @property
    def is_decided(self) -> bool:
        """Whether the milter has accepted all messages of the session."""
        return self._accepted is not None

    async def look(self) -> None:
        """See that the milter can be reached, and speaks the protocol.

        :raises MilterDownError: it cannot, or does not
        """
        self._until = self.loop.time() + self._target.total
        try:
            await self._tell([])
        finally:
            self.close()

    # -- what is sent ------------------------------------------------------------------------------

    async def client(self, server: Any, session: AnySession) -> None:
        """Tell of the client."""
        self.begin(None)
        await self._try(lambda: self._tell(self._client(server, session)))

    async def hello(self, server: Any, session: AnySession, name: str) -> None:
        """Tell of the client's greeting, and of what comes before."""
        self.begin(None)
        await self._try(lambda: self._tell(self._greeting(server, session, name)))

    async def sender(self, server: Any, session: AnySession, mail: Mail) -> None:
        """Tell of the sender, and of what comes before."""
        await self._try(lambda: self._tell(self._before(server, session, mail)))

    async def recipient(
        self, server: Any, session: AnySession, mail: Mail, recipient: Recipient
    ) -> None:
        """Tell of a recipient, and of what comes before; see :attr:`refused`."""

        async def tell() -> None:
            await self._tell(self._before(server, session, mail))
            if not self._recipients_told and mail.recipients:  # on another connection
                await self._tell(map(recipient_step, mail.recipients))
            await self._tell([recipient_step(recipient)], each_recipient=True)

        await self._try(tell)
        self._recipients_told += 1

    async def message(self, server: Any, session: AnySession, mail: Mail, parts: Parts) -> None:
        """Tell of the message, and of what comes before; there is a verdict, or it is down."""
        await self._try(lambda: self._tell(self._message(server, session, mail, parts)))

    def begin(self, envelope: Envelope | None) -> None:
        """Begin a transaction, or none; one that has not come to its end is aborted."""
        self.envelope = envelope
        self.down = ""
        self._told_sender, self._recipients_told = False, 0
        connection = self._connection
        if connection is None:
            return
        if connection.conversation.reusable:
            connection.begin()
        else:
            self.close()

    # -- steps: each is sent once on a connection --------------------------------------------------

    def _client(self, server: Any, session: AnySession) -> list[Step]:
        if self._told_client:
            return []
        self._told_client = True
        return [client_step(server, session, self._target.daemon_name or server.hostname)]

    def _greeting(self, server: Any, session: AnySession, name: str) -> list[Step]:
        steps, hello = self._client(server, session), (name, session.ssl is not None)
        if self._hello != hello:
            self._hello = hello
            steps.append(hello_step(session, name))
        return steps

    def _before(self, server: Any, session: AnySession, mail: Mail) -> list[Step]:
        """Return what comes before the recipients."""
        steps = self._greeting(server, session, mail.client.helo)
        if not self._told_sender:
            self._told_sender = True
            steps.append(sender_step(session, mail))
        return steps

    def _message(
        self, server: Any, session: AnySession, mail: Mail, parts: Parts
    ) -> Iterator[Step]:
        yield from self._before(server, session, mail)
        if not self._recipients_told:
            yield from map(recipient_step, mail.recipients)
        yield PAUSE  # a milter that decides by the envelope is not sent the message
        assert self._connection is not None
        yield from message_steps(mail, parts, self._connection.conversation)

    # -- the connection ----------------------------------------------------------------------------

    async def _try(self, tell: Callable[[], Any]) -> None:
        """Tell something; once more if a connection that was there before is found to be lost."""
        if self._accepted is not None or self.down:
            return
        self._until = self.loop.time() + self._target.total
        kept = self._connection
        said = 0 if kept is None else kept.conversation.progress
        try:
            try:
                await tell()
            except MilterDownError:
                if kept is None or not kept.lost or kept.conversation.progress != said:
                    raise
                self.close()
                await tell()
        except MilterDownError as error:
            self.down = str(error)
            self.close()
        except BaseException:
            self.close()
            raise
        self._note_acceptance()

    async def _tell(self, steps: Iterable[Step], *, each_recipient: bool = False) -> None:
        if self.verdict is not None:
            return
        if self._connection is None:
            target = self._target
            self._connection = await MilterConnection.to(
                *(target.address, Conversation(self._room), self._ended),
                connect=target.connect,
                answer=target.answer,
            )
        await self._connection.tell(steps, self._until, each_recipient=each_recipient)

    def _note_acceptance(self) -> None:
        """Ask nothing more in this session once the milter has accepted the client."""
        connection, verdict = self._connection, self.verdict
        if connection is None or verdict is None or verdict.kind is not Kind.ACCEPT:
            return
        decided_at = connection.conversation.decided_at
        if decided_at is CONNECT or decided_at is HELO:
            self._accepted = verdict
            self.close()

    def close(self) -> None:
        """End the connection; what is sent next begins anew."""
        connection, self._connection = self._connection, None
        self._told_client = self._told_sender = False
        self._hello, self._recipients_told = None, 0
        if connection is not None:
            connection.close()
