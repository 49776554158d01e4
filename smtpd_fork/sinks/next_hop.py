"""NextHop: the base class of Lmtp and Relay, which pass messages on to another mail server.

250 means that the hop has answered with 250 for that recipient after the end of the message.
Nothing is stored here: the client has to send a message again that the hop did not accept.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import MISSING

from smtpd_fork.dialogue.waiting import may_end_at_once
from smtpd_fork.gate import ClientLine, client_reporter
from smtpd_fork.hops.client import Order
from smtpd_fork.hops.client_reply import client_reply
from smtpd_fork.hops.content import PIECE, bdat_pieces, data_pieces, facts_of, facts_of_part
from smtpd_fork.hops.downgrade import form_of, recipient_command, sender_command
from smtpd_fork.hops.errors import NOT_AVAILABLE, HopError
from smtpd_fork.hops.lookup import Lookup, import_libraries
from smtpd_fork.hops.opening import Opening
from smtpd_fork.hops.passed_client import xforward_commands
from smtpd_fork.hops.peer_status import PeerStatus
from smtpd_fork.hops.pool import Pool
from smtpd_fork.hops.recipient_cache import RecipientCache
from smtpd_fork.message import Mail, MailClient, Replies
from smtpd_fork.peer_address import Peer, describe, host_of
from smtpd_fork.sinks.base import Sink

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiosmtpd.smtp import Envelope
    from aiosmtpd.smtp import Session as AnySession

    from smtpd_fork.hops.connection import HopConnection
    from smtpd_fork.hops.content import Facts
    from smtpd_fork.hops.replies import HopReply
    from smtpd_fork.hops.target import Target

__all__ = ["NextHop"]

log = logging.getLogger("smtpd_fork.sinks")

VERIFY_SECONDS = 30.0
"""Timeout of the verification of a recipient. Clients wait five minutes (RFC 5321 4.5.3.2.3), and
several recipients of a message may be verified one after the other."""


class NextHop(Sink):
    """Passes messages on to another server.

    :param target: the server
    :param connections: maximum connections to the server
    :param wait: maximum seconds that a message waits for a connection
    :param timeout: maximum seconds for a message
    :param verify: ask the hop about each recipient at RCPT
    """

    def __init__(
        self, target: Target, *, connections: int, wait: float, timeout: float, verify: bool
    ) -> None:
        import_libraries(target)
        self.target = target
        self.time_limit = timeout
        self._connections = connections
        self._wait = wait
        if not verify:
            # A hook without an await needs no task.
            self.handle_RCPT = accept_recipient  # type: ignore[assignment, method-assign]  # of this sink
        self._names_clients = target.client_by == "xclient"
        self._has_warned = False  # that the hop does not offer XFORWARD
        self._pool: Pool | None = None
        self._known = RecipientCache()
        self._reporter = client_reporter()

    @property
    def destination(self) -> str:
        """The destination of messages, for the log."""
        return f"{'LMTP' if self.target.lmtp else 'SMTP'} to {self.target}"

    @property
    def status(self) -> PeerStatus:
        """The state of the hop and of the connections to it."""
        pool = self._pool
        if pool is None:
            return PeerStatus()
        return PeerStatus(pool.connections, pool.busy, pool.waiting, pool.down_since, pool.reason)

    def check(self) -> None:
        """Check that libraries and files for DNS and TLS are available; do not connect to the hop.

        :raises ConfigError: DNS or TLS cannot be used: for example, a library or a file is missing
        """
        Lookup(self.target)
        if self.target.tls != "no":
            _ = self.target.tls_context

    def prepare(self) -> None:
        """Read the certificates for TLS.

        :raises ConfigError: as :meth:`check`
        """
        self.check()

    async def close(self) -> None:
        """Close the connections."""
        self._reporter.close()
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    # -- messages ----------------------------------------------------------------------------------

    async def deliver(self, mail: Mail) -> Replies:
        """Pass a message on; return the hop's reply for each recipient."""
        small = len(mail.content) <= PIECE
        facts = facts_of_part(mail.content) if small else await facts_of(mail.content)
        delivery = _Delivery(mail, facts, self.target)
        try:
            client = mail.client if self._names_clients else None
            order = await self._carry_out(delivery.order, client)
        except HopError as error:
            self._report(mail.client.peer, "not delivered", error.reason, mail)
            return error.reply
        except asyncio.CancelledError:
            self._report(mail.client.peer, "not delivered", "the next hop took too long", mail)
            raise
        replies = delivery.replies(order)
        self._log(mail, delivery, replies)
        if delivery.lacks_xforward and not self._has_warned:
            self._has_warned = True
            log.warning("%s does not offer XFORWARD to this host", delivery.server)
        return replies

    async def _carry_out(
        self, order_for: Callable[[HopConnection], Order | None], client: MailClient | None
    ) -> Order | None:
        """Carry out an order; see :meth:`Pool.carry_out`.

        :param client: the client to send by XCLIENT; None: XCLIENT is not sent
        """
        pool = self._pool
        if pool is None or not pool.usable:
            name = self.target.name or self.hostname or socket.gethostname()
            pool = self._pool = Pool(self.target, self._connections, self._wait, name=name)
        prepare = None if client is None else partial(_send_client, client)
        return await pool.carry_out(order_for, prepare)

    def _log(self, mail: Mail, delivery: _Delivery, replies: list[str]) -> None:
        if log.isEnabledFor(logging.INFO) and any(reply[0] == "2" for reply in replies):
            _log_delivery(mail, delivery, replies)
        for recipient, reply in zip(mail.recipients, replies, strict=True):
            if reply[0] != "2":
                whom = ascii(recipient.address)[1:-1]
                reason = f"<{whom}>: {delivery.reason or f'{delivery.server}: {reply}'}"
                self._report(mail.client.peer, "not delivered", reason, mail)

    def _report(self, peer: Peer, what: str, reason: str, mail: Mail | None = None) -> None:
        fields = {} if mail is None else _fields(mail)
        line = ClientLine.of(log, logging.WARNING, peer, what, reason, **fields)
        self._reporter.note(line)

    # -- recipients --------------------------------------------------------------------------------

    @may_end_at_once
    async def handle_RCPT(
        self, server: Any, session: AnySession, envelope: Envelope, address: str, options: list[str]
    ) -> Any:
        """Refuse a recipient that the hop refuses.

        The hop is asked with the null sender, so that its reply is valid for all senders. With
        XCLIENT the reply is valid only for the same client.
        """
        client = MailClient.of(session, envelope) if self._names_clients else None
        name = address
        if client is not None:
            name = f"{host_of(client.peer)} {client.helo} {client.user} {address}"
        reply = self._known.get(name, asyncio.get_running_loop().time())
        if reply is None:
            await asyncio.sleep(0)  # see may_end_at_once
            reply = await self._ask(session, client, address, name)
            if reply is None:
                return MISSING
        return MISSING if reply[0] == "2" else reply

    async def _ask(
        self, session: AnySession, client: MailClient | None, address: str, name: str
    ) -> str | None:
        """Ask the hop about a recipient; return its reply, or None if it refuses the null sender.

        :param client: the client to send by XCLIENT; None: XCLIENT is not sent
        :param name: the key of the reply in the cache
        """
        try:
            async with asyncio.timeout(VERIFY_SECONDS):
                order = await self._carry_out(partial(_verification, address), client)
            reply = _verified(order)
        except TimeoutError:
            self._report(session.peer, "recipient not verified", "the next hop gave no answer")
            return NOT_AVAILABLE
        except HopError as error:
            self._report(session.peer, "recipient not verified", error.reason)
            return error.reply
        except ValueError as error:
            reply = str(error)
        if reply is not None:
            self._known.put(name, reply, asyncio.get_running_loop().time())
        return reply

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.target}>"


async def _send_client(client: MailClient, connection: HopConnection) -> None:
    """Send a client by XCLIENT, unless the session has sent the same one.

    :raises HopError: the hop refuses the client, or the connection has ended
    """
    hop = connection.client
    assert isinstance(hop, Opening)
    hop.set_client(client)
    await connection.wait_opened()


async def accept_recipient(*_: Any) -> Any:
    """Do not refuse a recipient at RCPT; used as ``handle_RCPT``."""
    return MISSING


def _verification(address: str, connection: HopConnection) -> Order:
    """Return the order that verifies a recipient.

    :raises ValueError: the address cannot be sent; the text is the reply
    """
    utf8 = "SMTPUTF8" in connection.client.offered and not address.isascii()
    recipient = recipient_command(address, utf8=utf8)
    return Order(sender_command("", ["SMTPUTF8"] if utf8 else [], utf8=utf8), [recipient])


def _verified(order: Order | None) -> str | None:
    """Return the reply of a verification; None if the hop refuses the null sender.

    :raises HopError: the hop has closed the connection without a reply
    """
    assert order is not None
    reply = order.replies[0]
    if reply is None:
        assert order.fault is not None
        raise HopError(order.fault.reason, order.fault.reply)
    return None if order.sender_refused else client_reply(reply)


class _Delivery:
    """The delivery of a message to a hop.

    :param facts: properties of the content
    :ivar server: the name of the server for the log
    :ivar reason: why the hop has not answered for a recipient; empty if it has for all
    :ivar lacks_xforward: whether XFORWARD is required but not offered
    """

    def __init__(self, mail: Mail, facts: Facts, target: Target) -> None:
        self._mail = mail
        self._facts = facts
        self._target = target
        self._refusals: list[str | None] = []  # for each recipient; None: RCPT is sent
        self.server = ""
        self.reason = ""
        self.lacks_xforward = False

    def order(self, connection: HopConnection) -> Order | None:
        """Return the transaction for a connection; None if the message cannot be sent."""
        mail = self._mail
        self.server = connection.server
        head, content = mail.relayed()
        offered = connection.client.offered
        form = form_of(mail, head, self._facts, offered, lmtp=self._target.lmtp)
        if isinstance(form, str):
            self.reason = form
            self._refusals = [form] * len(mail.recipients)
            return None
        self._refusals = form.refusals
        if not form.recipients:
            return None
        pieces = bdat_pieces(head, content) if form.chunked else data_pieces(head, content)
        origin: Sequence[bytes] = ()
        if self._target.client_by == "xforward":
            self.lacks_xforward = "XFORWARD" not in offered
            origin = xforward_commands(mail, offered.get("XFORWARD", ""))
        return Order(form.sender, form.recipients, pieces, form.chunked, origin)

    def replies(self, order: Order | None) -> list[str]:
        """Return the reply for each recipient, after the order was carried out."""
        if order is None:
            return [refusal or NOT_AVAILABLE for refusal in self._refusals]
        answers = iter(order.replies)
        return [
            self._answer(next(answers), order.fault) if refusal is None else refusal
            for refusal in self._refusals
        ]

    def _answer(self, reply: HopReply | None, fault: HopError | None) -> str:
        """Return the reply for a recipient for which RCPT was sent."""
        if reply is not None:
            return client_reply(reply)
        if fault is None:
            return NOT_AVAILABLE
        self.reason = f"{self.server}: {fault.reason}"
        return fault.reply


def _fields(mail: Mail) -> dict[str, str]:
    """Return the fields of a log entry about a message."""
    session = mail.id.rpartition("-")[0]
    return {"session": session, "queue_id": mail.id} if session else {"queue_id": mail.id}


def _log_delivery(mail: Mail, delivery: _Delivery, replies: list[str]) -> None:
    """Log that a message was accepted for at least one recipient."""
    sender, client = ascii(mail.sender)[1:-1], describe(mail.client.peer)
    taken = [reply for reply in replies if reply[0] == "2"]
    about = {"client": client, "from": sender, "to": len(taken), "server": delivery.server}
    log.info(
        "[%s] delivered to %s: from=<%s> to=%d size=%d client=%s%s: %s",
        *(mail.id, delivery.server, sender, len(taken), len(mail.content)),
        *(client, mail.log_words, taken[0]),
        extra={**_fields(mail), **about, "size": len(mail.content), **mail.log_facts},
    )
