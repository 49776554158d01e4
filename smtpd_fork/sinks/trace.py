"""Trace headers: what a server writes on top of a message (RFC 5321 4.4)."""

from __future__ import annotations

import re
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

from smtpd_fork.net import source_key

if TYPE_CHECKING:
    from datetime import datetime

    from aiosmtpd.smtp import Envelope
    from aiosmtpd.smtp import Session as AnySession

    from smtpd_fork.net import Peer

__all__ = ["above", "protocol_name", "trace_headers"]

MAX_WORD = 255
"""Characters of a stranger's word that are kept: a domain's length (RFC 5321 4.5.3.1.2)."""

_UNSAFE = re.compile(r"[^!-~\u00a1-\U0010ffff]|[()\\]")
_UNSAFE_IN_ADDRESS = re.compile(r"[\x00-\x1f\x7f-\x9f<>]")
_SURROGATE = re.compile("[\ud800-\udfff]")

_FIELD = rb"[!-9;-~]++[ \t]*+:"
"""How a header field begins (RFC 5322 2.2 and 4.5)."""

_BEGINS_WITH_HEADER = re.compile(_FIELD + rb"|\r?\n")
_MBOX_LINES = re.compile(rb"(?:>*+From (?![ \t]*+:)[^\n]*+\n)++(?=" + _FIELD + rb")")
""""From x ..." as mbox(5) has it on top of each message, also in its quoted form."""


def trace_headers(
    hostname: str, session: AnySession, envelope: Envelope, queue_id: str, now: datetime
) -> bytes:
    """Return ``Return-Path``, ``Delivered-To`` and ``Received``, each line ending in LF.

    Whatever came from the client (names, addresses) is made harmless first: a line break in an
    address must not become a header of its own.

    :param hostname: of this host
    :param queue_id: the id that the client is told
    :param now: with its time zone
    """
    lines = [f"Return-Path: <{_address(envelope.mail_from)}>"]
    lines += [f"Delivered-To: {_address(recipient)}" for recipient in envelope.rcpt_tos]
    lines.append(f"Received: from {_client(session)}")
    lines.append(f"\tby {hostname} (smtpd-fork) with {protocol_name(session)} id {queue_id}")
    if cipher := _cipher(session):
        lines.append(f"\t({cipher})")
    if len(envelope.rcpt_tos) == 1:  # more would tell each recipient of the others (7.2)
        lines.append(f"\tfor <{_address(envelope.rcpt_tos[0])}>")
    lines[-1] += ";"
    lines.append(f"\t{format_datetime(now)}")
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def above(head: bytes, content: bytes) -> tuple[bytes, bytes]:
    """Return *head* and the rest of *content* such that the header of *content* goes on below it.

    A line of an mbox file above the header becomes a field ``Mailbox-Line``, as Postfix has it.
    A message without a header gets the empty line between header and text.

    :param head: fields, whose lines end as those of *content*
    """
    if lines := _MBOX_LINES.match(content):
        fields = [b"Mailbox-Line: " + line for line in lines[0].splitlines(keepends=True)]
        return head + b"".join(fields), content[lines.end() :]
    if content and not _BEGINS_WITH_HEADER.match(content):
        head += b"\r\n" if head.endswith(b"\r\n") else b"\n"
    return head, content


def protocol_name(session: AnySession) -> str:
    """Return the protocol as RFC 3848 names it: SMTP, ESMTP, LMTP, with S for TLS, A for AUTH."""
    if not session.extended_smtp:
        return "SMTP"
    tls = "S" if session.ssl else ""
    auth = "A" if session.authenticated else ""
    return f"{'LMTP' if getattr(session, 'lmtp', False) else 'ESMTP'}{tls}{auth}"


def _client(session: AnySession) -> str:
    name = _word(session.host_name or "unknown")
    peer: Peer = session.peer
    host = source_key(peer)
    if host is None:
        return f"{name} (local socket)"
    literal = f"IPv6:{host}" if ":" in host else host
    return f"{name} ([{literal}])"


def _cipher(session: AnySession) -> str:
    facts: dict[str, Any] = session.ssl or {}
    cipher = facts.get("cipher")
    return f"{cipher[1]} cipher {cipher[0]} bits {cipher[2]}" if cipher else ""


def _word(text: str) -> str:
    return _UNSAFE.sub("?", text[:MAX_WORD])


def _address(text: str | None) -> str:
    # aiosmtpd records the null sender as "<>".
    if text is None or text == "<>":
        return ""
    return _UNSAFE_IN_ADDRESS.sub("?", _SURROGATE.sub("?", text))
