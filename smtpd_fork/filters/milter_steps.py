"""Make the events that describe a session and a message to a milter, with their macros."""

from __future__ import annotations

from email.utils import format_datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from smtpd_fork.dialogue.session import is_on_unix_socket
from smtpd_fork.hops.milter.codec import text_of
from smtpd_fork.hops.milter.events import (
    DATA,
    END,
    END_OF_HEADER,
    HEADER,
    HELO,
    MAIL,
    RCPT,
    Step,
    body_steps,
    connect_step,
    header_step,
    path_step,
    unknown_client_step,
)
from smtpd_fork.message import Mail, Recipient
from smtpd_fork.peer_address import host_of
from smtpd_fork.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from aiosmtpd.smtp import Session as AnySession

    from smtpd_fork.hops.milter.conversation import Conversation
    from smtpd_fork.hops.milter.edited import Parts
    from smtpd_fork.peer_address import Peer

__all__ = ["client_step", "hello_step", "message_steps", "recipient_step", "sender_step"]

_DATA, _END_OF_HEADER, _END = Step(DATA), Step(END_OF_HEADER), Step(END)

_TRANSPORT = "esmtp"
"""The value of the macros ``{mail_mailer}`` and ``{rcpt_mailer}``; "error" would mean a refused
address."""


def client_step(server: Any, session: AnySession, daemon_name: str) -> Step:
    """Return the event of a client's connection."""
    peer: Peer = session.peer
    address = host_of(peer)
    port = peer[1] if isinstance(peer, tuple) else 0
    name = getattr(session, "host_name_dns", None)
    macros = _of_client(server, session, name or "unknown", daemon_name)
    if address is None and not is_on_unix_socket(session):
        return unknown_client_step(name or "unknown", macros)
    shown = name or (f"[{address}]" if address else "localhost")
    return connect_step(shown, address, port, macros)


def hello_step(session: AnySession, name: str) -> Step:
    """Return the event of EHLO or HELO."""
    return Step(HELO, text_of(name), _of_tls(session))


def sender_step(session: AnySession, mail: Mail) -> Step:
    """Return the event of a message's sender."""
    return path_step(MAIL, mail.sender, mail.parameters, _of_sender(session, mail))


def recipient_step(recipient: Recipient) -> Step:
    """Return the event of a recipient."""
    macros = {
        "{rcpt_addr}": recipient.address,
        "{rcpt_host}": recipient.domain,
        "{rcpt_mailer}": _TRANSPORT,
    }
    return path_step(RCPT, recipient.address, recipient.parameters, macros)


def message_steps(mail: Mail, parts: Parts, conversation: Conversation) -> Iterator[Step]:
    """Yield the events of a message: the header fields, the body in chunks, the end."""
    yield _DATA
    if conversation.wants(HEADER) and (fields := parts.names_and_values):
        yield header_step(fields, leading_space=conversation.leading_space)
    yield _END_OF_HEADER
    yield from body_steps(mail.content, parts.body)
    yield _END


def _of_client(server: Any, session: AnySession, shown: str, daemon_name: str) -> dict[str, str]:
    peer: Peer = session.peer
    address = host_of(peer) or ""
    macros = {
        "j": server.hostname,
        "v": f"smtpd-fork {__version__}",
        "{daemon_name}": daemon_name,
        "_": f"{shown} [{address}]" if address else _without_address(session, shown),
        "{client_addr}": address,
        "{client_name}": shown,
        "{client_ptr}": shown,
        "{client_port}": str(peer[1]) if isinstance(peer, tuple) else "",
    }
    local = getattr(session, "local", None)  # aiosmtpd's session has none
    if isinstance(local, tuple):
        macros["{daemon_addr}"] = macros["{if_addr}"] = host_of(local) or ""
        macros["{daemon_port}"] = str(local[1])
    return macros


def _without_address(session: AnySession, shown: str) -> str:
    return "localhost" if is_on_unix_socket(session) else shown


def _of_tls(session: AnySession) -> dict[str, str]:
    facts: dict[str, Any] = session.ssl or {}
    cipher = facts.get("cipher")
    if not cipher:
        return {}
    subject = getattr(session, "peer_subject", None) or ""
    name, version, bits = cipher
    return {
        "{tls_version}": version,
        "{cipher}": name,
        "{cipher_bits}": str(bits),
        "{cert_subject}": subject,
        "{verify}": "OK" if subject else "NO",
    }


def _of_sender(session: AnySession, mail: Mail) -> dict[str, str]:
    macros = {
        "i": mail.id,
        "b": _date(mail.received),
        "{mail_addr}": mail.sender,
        "{mail_host}": mail.sender.rpartition("@")[2],
        "{mail_mailer}": _TRANSPORT,
    }
    if session.authenticated:
        # Milters test whether there is a mechanism to see whether the client has authenticated.
        macros["{auth_type}"] = getattr(session, "auth_mechanism", "") or "PLAIN"
        macros["{auth_authen}"] = mail.client.user or "unknown"
    return macros


@lru_cache(maxsize=1)
def _date(received: datetime) -> str:
    """Return a time in the format of RFC 5322; cached, as it has a resolution of one second."""
    return format_datetime(received)
