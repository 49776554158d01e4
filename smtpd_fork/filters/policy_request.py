"""Make the attributes of a request to a policy server, as Postfix's SMTP server does."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from smtpd_fork.dialogue.session import is_on_unix_socket
from smtpd_fork.message.mail import MailClient, new_queue_id, parameters_of
from smtpd_fork.message.mailbox import without_quotes
from smtpd_fork.peer_address import host_of
from smtpd_fork.version import __version__

if TYPE_CHECKING:
    from aiosmtpd.smtp import Envelope
    from aiosmtpd.smtp import Session as AnySession

__all__ = ["attributes"]

COMPATIBILITY_LEVEL = "3.8"
"""The version of Postfix whose requests have the same attributes."""

_NOT_XTEXT = re.compile(r"[^!-*,-<>-~]")
"""Characters that xtext writes as ``+XX`` (RFC 3461 4)."""


def attributes(
    server: Any,
    session: AnySession,
    envelope: Envelope | None,
    state: str,
    *,
    context: str = "",
    helo: str | None = None,
    sender: str | None = None,
    recipient: str | None = None,
) -> dict[str, str]:
    """Return the attributes of a request.

    :param envelope: None before the first command
    :param state: the command: ``CONNECT``, ``EHLO``, ``HELO``, ``MAIL``, ``RCPT``, ``DATA``, or
        ``END-OF-MESSAGE``
    :param context: the setting ``policy-context`` of the filter
    :param helo: the name of EHLO or HELO, which the session does not have yet
    :param sender: the sender of MAIL, which the envelope does not have yet
    :param recipient: the recipient of RCPT
    """
    return {
        "request": "smtpd_access_policy",
        "protocol_state": state,
        **_of_client(server, session, helo),
        **_of_message(session, envelope, state, sender, recipient),
        "stress": "yes" if getattr(server, "stressed", False) else "",  # aiosmtpd has no such state
        **_of_login(session, envelope),
        **_of_tls(session),
        "policy_context": context,
        "compatibility_level": COMPATIBILITY_LEVEL,
        "mail_version": f"smtpd-fork {__version__}",
    }


def _of_client(server: Any, session: AnySession, helo: str | None) -> dict[str, str]:
    peer: Any = session.peer
    address = host_of(peer)
    is_local = is_on_unix_socket(session)  # to Postfix such a client is localhost, 127.0.0.1
    name = "localhost" if is_local else getattr(session, "host_name_dns", None) or "unknown"
    local = getattr(session, "local", None)
    if local is None and getattr(server, "transport", None) is not None:  # aiosmtpd's
        local = server.transport.get_extra_info("sockname")
    extended = "LMTP" if getattr(session, "lmtp", False) else "ESMTP"
    return {
        "protocol_name": extended if session.extended_smtp else "SMTP",
        "client_address": address or ("127.0.0.1" if is_local else "unknown"),
        "client_name": name,
        "client_port": str(peer[1]) if isinstance(peer, tuple) else "0",
        "reverse_client_name": name,
        "server_address": (host_of(local) if isinstance(local, tuple) else None) or "",
        "server_port": str(local[1]) if isinstance(local, tuple) else "",
        "helo_name": (session.host_name if helo is None else helo) or "",
    }


def _of_message(
    session: AnySession, envelope: Envelope | None, state: str, sender: str | None, to: str | None
) -> dict[str, str]:
    instance = getattr(session, "id", "") or f"{id(session):x}"
    recipients: list[str] = []
    queue_id = size = ""
    if envelope is not None and state not in {"EHLO", "HELO"}:
        queue_id = getattr(envelope, "queue_id", None) or new_queue_id(session)
        envelope.queue_id = instance = queue_id  # type: ignore[attr-defined] # of ours
        sender = envelope.mail_from if sender is None else sender
        declared = parameters_of(envelope).get("SIZE")
        size = declared if isinstance(declared, str) else ""
        if state in {"DATA", "END-OF-MESSAGE"}:
            recipients = envelope.rcpt_tos
            to = recipients[0] if len(recipients) == 1 else ""
        if state == "END-OF-MESSAGE":
            size = str(len(envelope.original_content or b""))
    return {
        "queue_id": queue_id,
        "instance": instance,
        "sender": "" if sender in {None, "<>"} else without_quotes(str(sender)),
        "recipient": without_quotes(to or ""),
        "recipient_count": str(len(recipients)),
        "size": size.lstrip("0") or "0",
        "etrn_domain": "",
    }


def _of_login(session: AnySession, envelope: Envelope | None) -> dict[str, str]:
    method = name = on_behalf_of = ""
    if session.authenticated:
        method = getattr(session, "auth_mechanism", "") or "PLAIN"
        name = MailClient(login=session.auth_data).user or "unknown"
        given = "" if envelope is None else parameters_of(envelope).get("AUTH", "")
        on_behalf_of = given if isinstance(given, str) else ""
    return {"sasl_method": method, "sasl_username": name, "sasl_sender": on_behalf_of}


def _of_tls(session: AnySession) -> dict[str, str]:
    facts: dict[str, Any] = session.ssl or {}
    name, version, bits = facts.get("cipher") or ("", "", "")
    certificate = facts.get("peercert") or {}
    der = facts["ssl_object"].getpeercert(binary_form=True) if certificate else None
    of_certificate, of_key = _fingerprints(der) if der else ("", "")
    return {
        "encryption_protocol": version,
        "encryption_cipher": name,
        "encryption_keysize": str(bits or 0),
        "ccert_subject": _name(certificate.get("subject", ()), "commonName"),
        "ccert_issuer": _name(certificate.get("issuer", ()), "commonName", "organizationName"),
        "ccert_fingerprint": of_certificate,
        "ccert_pubkey_fingerprint": of_key,
    }


def _name(name: Any, *keys: str) -> str:
    """Return an attribute of a certificate's subject or issuer as xtext (RFC 3461 4).

    :param keys: the names of attributes; the first one that exists is used
    """
    parts = {key: value for part in name for key, value in part}
    octets = next((parts[key] for key in keys if key in parts), "").encode().decode("latin-1")
    return _NOT_XTEXT.sub(lambda found: f"+{ord(found[0]):02X}", octets)


@lru_cache(maxsize=100)
def _fingerprints(der: bytes) -> tuple[str, str]:
    """Return the SHA-256 of a certificate and of its public key, as Postfix writes them."""
    # Imported on first use: a server without TLS does not need it.
    from cryptography import x509  # noqa: PLC0415 - see above
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415 - see above
        Encoding,
        PublicFormat,
    )

    key = x509.load_der_x509_certificate(der).public_key()
    octets = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    first, second = (hashlib.sha256(each).digest().hex(":").upper() for each in (der, octets))
    return first, second
