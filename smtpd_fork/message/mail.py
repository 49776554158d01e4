"""Mail: a message with its envelope, as sinks receive it."""

from __future__ import annotations

import hashlib
import itertools
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Self

from aiosmtpd.smtp import Envelope
from aiosmtpd.smtp import Session as AnySession

from smtpd_fork.dialogue.notes import Marks, marks_of, notes_of
from smtpd_fork.dialogue.origin import Origin
from smtpd_fork.message.trace import above, final_fields, protocol_name, received_field

if TYPE_CHECKING:
    from collections.abc import Collection

    from smtpd_fork.peer_address import Peer

__all__ = ["Mail", "MailClient", "Parameters", "Recipient", "new_queue_id", "parameters_of"]

Parameters = Mapping[str, str | bool]
"""Parameters of MAIL or RCPT: the name in capitals, and the value as received, or True without
one."""

_numbers = itertools.count(1)

_UNMARKED = Marks()

_RUN = secrets.token_hex(3)
"""The prefix of message ids if sessions have no ids. Sinks may name files by the id, and files of
previous processes still exist."""


@lru_cache(maxsize=1)
def _local_time(seconds: int) -> datetime:
    """Return the local time with its time zone; all messages of one second share the object."""
    return datetime.fromtimestamp(seconds).astimezone()


def new_queue_id(session: AnySession) -> str:
    """Return a new id for a message.

    A filter that needs the id before the sink stores it in ``envelope.queue_id``.
    """
    return f"{getattr(session, 'id', '') or _RUN}-{next(_numbers):x}"


@dataclass(frozen=True, slots=True)
class Recipient:
    """A recipient of a message.

    :ivar address: the address from RCPT, or the one to which a handler changed it
    :ivar parameters: the parameters of RCPT: NOTIFY and ORCPT (RFC 3461)
    """

    address: str
    parameters: Parameters = field(default_factory=dict)

    @property
    def domain(self) -> str:
        """The domain in lower case; empty if there is none, as in ``postmaster``."""
        return self.address.rpartition("@")[2].lower() if "@" in self.address else ""


@dataclass(frozen=True, slots=True)
class MailClient:
    """The client from which a message was received.

    :ivar peer: its address, ``(host, port, ...)``; "" for a unix socket
    :ivar helo: the name in its HELO, EHLO or LHLO
    :ivar name: its verified reverse DNS name, with ``--rdns``; otherwise None
    :ivar login: the ``auth_data`` of its AUTH; None without AUTH
    :ivar tls: whether the connection was encrypted
    :ivar protocol: the registered name of the protocol, such as ``ESMTPS`` (RFC 3848)
    :ivar local: the address that the client connected to
    """

    peer: Peer = ""
    helo: str = ""
    name: str | None = None
    login: Any = None
    tls: bool = False
    protocol: str = ""
    local: Peer = None

    @classmethod
    def of(cls, session: AnySession, envelope: Envelope) -> Self:
        """Return the client of a session, which may be an object of aiosmtpd."""
        return cls(
            session.peer or "",
            session.host_name or "",
            getattr(session, "host_name_dns", None),
            session.auth_data if session.authenticated else None,
            session.ssl is not None,
            protocol_name(session, envelope),
            getattr(session, "local", None),
        )

    @property
    def user(self) -> str | None:
        """The name of the authenticated user, if the authenticator returned it; otherwise None.

        If ``login`` itself is bytes, the result is None: some authenticators return the password.
        """
        name = getattr(self.login, "login", self.login if isinstance(self.login, str) else None)
        if isinstance(name, bytes):
            return name.decode("utf-8", "replace")
        return name if isinstance(name, str) else None


@dataclass(frozen=True)
class Mail:
    """A message with its envelope.

    :ivar id: the queue id, which is in the log, in the reply and in ``Received``
    :ivar sender: the address of MAIL; empty for the null sender
    :ivar recipients: the accepted recipients; for a sink with ``for``, only those that it delivers
        to
    :ivar content: header and body as received from the client, with the changes of filters; lines
        end in CR LF. It has no ``Received`` of this server: see :meth:`relayed` and
        :meth:`delivered`
    :ivar parameters: the parameters of MAIL: RET, ENVID, AUTH and so on
    :ivar body: ``7BIT``, ``8BITMIME`` or ``BINARYMIME`` (RFC 6152, 3030)
    :ivar utf8: whether the client sent SMTPUTF8 (RFC 6531)
    :ivar client: the client
    :ivar received: the time of reception, with its time zone
    :ivar quarantine: the reason why a filter quarantined the message; empty if none did
    :ivar trace: the field ``Received`` of this server; its lines end in CR LF
    :ivar all_recipients: the addresses of all recipients of the transaction, for :attr:`key`
    :ivar digest_as_received: SHA-256 of the content before filters changed it; empty if none did
    :ivar marks: the score and the tags that filters gave the message and its client
    :ivar notes: the notes of handlers about the message
    :ivar xforward: attributes of XFORWARD (ADDR, NAME, HELO, IDENT and so on): the client is a
        trusted host, which names with them the client that it received the message from
    """

    id: str
    sender: str
    recipients: tuple[Recipient, ...]
    content: bytes = field(repr=False)
    parameters: Parameters = field(default_factory=dict)
    body: str = "7BIT"
    utf8: bool = False
    client: MailClient = field(default_factory=MailClient)
    received: datetime = field(default_factory=lambda: _local_time(int(time.time())))
    quarantine: str = ""
    trace: bytes = field(default=b"", repr=False)
    all_recipients: tuple[str, ...] = field(default=(), repr=False)
    digest_as_received: bytes = field(default=b"", repr=False)
    marks: Marks = _UNMARKED
    notes: Mapping[str, Any] = field(default_factory=dict, repr=False)
    xforward: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, server: Any, session: AnySession, envelope: Envelope, *, with_trace: bool = True
    ) -> Self:
        """Return the message of a call of ``handle_DATA``.

        :param server: the object of class SMTP; this and the others may be aiosmtpd's
        :param with_trace: whether ``trace`` is set; filters do not need it
        """
        queue_id = getattr(envelope, "queue_id", None) or new_queue_id(session)
        now = _local_time(int(time.time()))
        content = envelope.original_content
        if content is None:
            content = b""
        parameters = parameters_of(envelope)
        addresses = tuple(envelope.rcpt_tos)
        params: list[Parameters] = getattr(envelope, "rcpt_params", [])
        recipients = tuple(
            Recipient(address, params[index] if index < len(params) else {})
            for index, address in enumerate(addresses)
        )
        sender, trace = envelope.mail_from or "", b""
        if with_trace:
            trace = received_field(server.hostname, session, envelope, queue_id, now)
        return cls(
            queue_id,
            "" if sender == "<>" else sender,  # aiosmtpd's form of the null sender
            recipients,
            content,
            parameters,
            getattr(envelope, "body", None) or str(parameters.get("BODY", "7BIT")),
            envelope.smtp_utf8,
            MailClient.of(session, envelope),
            now,
            getattr(envelope, "quarantine", ""),
            trace,
            addresses,
            getattr(envelope, "digest_as_received", b""),
            marks_of(session, envelope),
            notes_of(envelope),
            getattr(envelope, "xforward", None) or {},
        )

    @property
    def log_words(self) -> str:
        """The words about marks and origin at the end of the message's log line."""
        return f"{self.marks}{Origin.of(self.xforward)}"

    @property
    def log_facts(self) -> dict[str, float | str]:
        """The marks and the origin as fields of the message's log entry."""
        return self.marks.facts | Origin.of(self.xforward).facts

    @property
    def score(self) -> float:
        """The sum of the scores that filters gave the message and its client."""
        return self.marks.score

    @property
    def tags(self) -> frozenset[str]:
        """The tags that filters gave the message and its client."""
        return self.marks.tags

    @cached_property
    def key(self) -> str:
        """The idempotency key: it is the same when the client sends the message again.

        SHA-256, in hexadecimal, of the sender, all recipients of the transaction and the content as
        received. It takes 1 ms per MB, so compute it in a thread for large messages.
        """
        names = self.all_recipients or tuple(each.address for each in self.recipients)
        digest = hashlib.sha256()
        for text in (self.sender, *sorted(names)):
            octets = text.encode("utf-8", "surrogateescape")
            digest.update(b"%d:%b," % (len(octets), octets))
        digest.update(self.digest_as_received or hashlib.sha256(self.content).digest())
        return digest.hexdigest()

    @property
    def binary(self) -> bool:
        """Whether the content may not consist of lines (BINARYMIME, RFC 3030)."""
        return self.body == "BINARYMIME"

    def to(self, recipients: Collection[Recipient]) -> Mail:
        """Return the same message for some of its recipients, with the same id, key and trace."""
        if len(recipients) == len(self.recipients):
            return self
        names = self.all_recipients or tuple(each.address for each in self.recipients)
        return replace(self, recipients=tuple(recipients), all_recipients=names)

    def relayed(self) -> tuple[bytes, bytes]:
        """Return the message for another server: ``Received``, and the content.

        The result is two pieces, as a copy of a large message takes time and memory. Lines end in
        CR LF.
        """
        return above(self.trace, self.content)

    def delivered(self, recipients: Collection[Recipient] | None = None) -> tuple[bytes, bytes]:
        """Return the message for a mailbox, in two pieces.

        At its top are ``Return-Path``, a ``Delivered-To`` for each recipient, and ``Received``.

        :param recipients: the owners of the mailbox; default: all recipients
        """
        owners = self.recipients if recipients is None else recipients
        head = final_fields(self.sender, [each.address for each in owners])
        return above(head + self.trace, self.content)


def parameters_of(envelope: Envelope) -> Parameters:
    """Return the parameters of MAIL from an envelope, which may be an object of aiosmtpd."""
    given: Parameters | None = getattr(envelope, "mail_params", None)
    if given is not None:
        return given
    parameters: dict[str, str | bool] = {}
    for option in envelope.mail_options:
        name, equals, value = option.partition("=")
        parameters[name.upper()] = value if equals else True
    return parameters
