"""Talk: what one milter is told of one transaction, and how it ends."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smtpd_fork.filters.milter_steps import message_steps, recipient_step, session_steps
from smtpd_fork.hops.milter.connection import MilterConnection, MilterDownError
from smtpd_fork.hops.milter.conversation import Conversation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiosmtpd.smtp import Envelope
    from aiosmtpd.smtp import Session as AnySession

    from smtpd_fork.hops.address import HopAddress
    from smtpd_fork.hops.milter.edited import Parts
    from smtpd_fork.hops.milter.events import Step
    from smtpd_fork.hops.milter.verdict import Verdict
    from smtpd_fork.message import Mail, Recipient

__all__ = ["Limits", "Talk"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a milter may take.

    :ivar connect: seconds for the connection
    :ivar answer: seconds for each answer; those of progress extend it
    :ivar total: seconds for all that one hook waits for
    """

    connect: float
    answer: float
    total: float


class Talk:
    """A conversation with a milter about one transaction.

    It has a connection of its own. Version 6 has a command for the next client on the same one
    (SMFIC_QUIT_NC); OpenDKIM, clamav-milter and spamass-milter answered nothing behind it.

    :param envelope: of the transaction
    :param room: bytes that the milter may change
    :param each_recipient: it is told of a recipient as the client names it
    :ivar conversation: what was said
    :ivar down: why the milter is out of reach; empty while it is not
    """

    def __init__(
        self, address: HopAddress, limits: Limits, envelope: Envelope, room: int,
        *, daemon_name: str, each_recipient: bool,
    ) -> None:  # fmt: skip
        self.envelope = envelope
        self.conversation = Conversation(room, each_recipient=each_recipient)
        self.down = ""
        self._address = address
        self._limits = limits
        self._daemon_name = daemon_name
        self._connection: MilterConnection | None = None
        self._begun = False
        self._recipients_told = 0

    @property
    def verdict(self) -> Verdict | None:
        """What the milter has decided so far."""
        return self.conversation.verdict

    async def begin(self, server: Any, session: AnySession, mail: Mail) -> None:
        """Tell of the client and the sender."""
        await self._tell(self._before(server, session, mail))

    async def recipient(
        self, server: Any, session: AnySession, mail: Mail, recipient: Recipient
    ) -> str:
        """Tell of a recipient, and of what comes before; return the refusal of it, if any."""

        def steps() -> Iterator[Step]:
            yield from self._before(server, session, mail)
            yield recipient_step(recipient)

        await self._tell(steps())
        self._recipients_told += 1
        return self.conversation.refused

    async def message(self, server: Any, session: AnySession, mail: Mail, parts: Parts) -> None:
        """Tell of the message, and of what comes before; there is a verdict, or it is down."""

        def steps() -> Iterator[Step]:
            yield from self._before(server, session, mail)
            if not self._recipients_told:
                yield from map(recipient_step, mail.recipients)
            yield from message_steps(mail, parts, self.conversation)

        await self._tell(steps())
        self.close()

    def _before(self, server: Any, session: AnySession, mail: Mail) -> Iterator[Step]:
        """Yield what comes before the recipients, once."""
        if not self._begun:
            self._begun = True
            yield from session_steps(server, session, mail, self._daemon_name)

    async def _tell(self, steps: Iterator[Step]) -> None:
        if self.down or self.verdict is not None:
            return
        limits = self._limits
        try:
            async with asyncio.timeout(limits.total):
                if self._connection is None:
                    self._connection = await MilterConnection.to(
                        *(self._address, self.conversation),
                        connect=limits.connect,
                        answer=limits.answer,
                    )
                await self._connection.tell(steps)
        except TimeoutError:
            self.down = f"no verdict within {limits.total:g} s"
        except MilterDownError as error:
            self.down = str(error)
        if self.down:
            self.close()

    def close(self) -> None:
        """End it."""
        if self._connection is not None:
            self._connection.close()
