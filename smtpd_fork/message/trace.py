"""Trace fields: the fields that a server adds at the top of a message (RFC 5321 4.4)."""

from __future__ import annotations

import re
from email.utils import format_datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import Envelope
from aiosmtpd.smtp import Session as AnySession

from smtpd_fork.dialogue.path import parse_path
from smtpd_fork.peer_address import Peer, host_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

__all__ = ["above", "end_of_mbox_lines", "final_fields", "protocol_name", "received_field"]

MAX_WORD = 255
"""Maximum characters of a client's name: the length of a domain (RFC 5321 4.5.3.1.2)."""

_PLAIN = re.compile(r"[A-Za-z0-9._\[\]:-]*")
_SPECIAL = set(' <>()\\",;@=')
"""Characters that could end a word of Received, or begin a comment, a quoted string or an encoded
word in it. Postfix removes the same characters, except the last, from the names of clients."""

_date = lru_cache(maxsize=1)(format_datetime)
"""The cache has one entry, as many messages have the same second."""

CLIENTS = 256
"""Entries in the cache of formatted clients; many clients send several messages."""

_UNSAFE_IN_ADDRESS = re.compile("[\x00-\x1f\x7f-\x9f<>\u2028\u2029\ud800-\udfff]")

LONGEST_SEARCH = 1 << 16
"""Bytes in which the header must begin after the lines of an mbox file; otherwise all is text. The
search takes up to a millisecond."""

_FIELD = rb"[!-9;-~]++[ \t]*+:"
"""The beginning of a header field (RFC 5322 2.2 and 4.5)."""

_BEGINS_WITH_HEADER = re.compile(_FIELD + rb"|\r?\n")
_MBOX_LINES = re.compile(rb"(?:>*+From (?![ \t]*+:)[^\n]*+\n)++(?=" + _FIELD + rb")")
"""Lines "From x ..." above a message, as in an mbox file (mbox(5)), also in their quoted form."""


def received_field(
    hostname: str, session: AnySession, envelope: Envelope, queue_id: str, now: datetime
) -> bytes:
    """Return the field ``Received``; its lines end in CR LF.

    In the name from the client's EHLO, ``?`` replaces each character that could change the
    structure of the header.

    :param hostname: the name of this host
    :param queue_id: the id in the reply
    :param now: the time, with its time zone
    """
    client = _client(session.host_name or "unknown", session.peer, utf8=envelope.smtp_utf8)
    lines = [f"Received: from {client}"]
    protocol = protocol_name(session, envelope)
    lines.append(f"\tby {hostname} (smtpd-fork) with {protocol} id {queue_id}")
    if cipher := _cipher(session):
        lines.append(f"\t({cipher})")
    if len(envelope.rcpt_tos) == 1:  # with more, recipients would see each other (7.2)
        lines.append(f"\tfor <{_address(envelope.rcpt_tos[0])}>")
    lines[-1] += ";"
    lines.append(f"\t{_date(now)}")
    return ("\r\n".join(lines) + "\r\n").encode("utf-8", "replace")


def final_fields(sender: str, recipients: Iterable[str]) -> bytes:
    """Return ``Return-Path``, and a ``Delivered-To`` for each recipient, with unchanged addresses.

    Only the server that delivers a message to a mailbox adds them (RFC 5321 4.4).
    """
    lines = [f"Return-Path: <{_address(sender)}>"]
    lines += [f"Delivered-To: {_address(recipient)}" for recipient in recipients]
    return ("\r\n".join(lines) + "\r\n").encode("utf-8", "replace")


def above(head: bytes, content: bytes) -> tuple[bytes, bytes]:
    """Return *head* and the rest of *content*, such that both together have one header.

    A line of an mbox file above the header becomes a field ``Mailbox-Line``, as in Postfix. A
    message without a header gets an empty line between the fields and the text.

    :param head: fields, with the same line ends as *content*
    """
    if lines := _MBOX_LINES.match(content, 0, LONGEST_SEARCH):
        fields = [b"Mailbox-Line: " + line for line in lines[0].splitlines(keepends=True)]
        return head + b"".join(fields), content[lines.end() :]
    if content and not _BEGINS_WITH_HEADER.match(content, 0, LONGEST_SEARCH):
        head += b"\r\n" if head.endswith(b"\r\n") else b"\n"
    return head, content


def end_of_mbox_lines(content: bytes) -> int:
    """Return the offset of the header: after lines of an mbox file, see :func:`above`."""
    lines = _MBOX_LINES.match(content, 0, LONGEST_SEARCH)
    return lines.end() if lines else 0


def protocol_name(session: AnySession, envelope: Envelope) -> str:
    """Return the registered name of the protocol.

    It is SMTP, ESMTP or LMTP, with S for TLS and A for AUTH (RFC 3848); UTF8SMTP or UTF8LMTP and so
    on for a message with SMTPUTF8 (RFC 6531 4.3).
    """
    if not session.extended_smtp:
        return "SMTP"
    if getattr(session, "lmtp", False):
        name = "UTF8LMTP" if envelope.smtp_utf8 else "LMTP"
    else:
        name = "UTF8SMTP" if envelope.smtp_utf8 else "ESMTP"
    return f"{name}{'S' if session.ssl else ''}{'A' if session.authenticated else ''}"


@lru_cache(maxsize=CLIENTS)
def _client(helo: str, peer: Peer, *, utf8: bool) -> str:
    name = _word(helo, utf8=utf8)
    host = host_of(peer)
    if host is None:
        return f"{name} (local socket)"
    literal = f"IPv6:{host}" if ":" in host else host
    return f"{name} ([{_word(literal, utf8=utf8)}])"


def _cipher(session: AnySession) -> str:
    facts: dict[str, Any] = session.ssl or {}
    cipher = facts.get("cipher")
    return f"{cipher[1]} cipher {cipher[0]} bits {cipher[2]}" if cipher else ""


def _word(text: str, *, utf8: bool) -> str:
    """Return a name that a client sent, as one word of a header.

    :param utf8: whether the header may contain characters outside ASCII (RFC 6532)
    """
    text = text[:MAX_WORD]
    if _PLAIN.fullmatch(text):
        return text
    return "".join(
        char if char not in _SPECIAL and char.isprintable() and (utf8 or char.isascii()) else "?"
        for char in text
    )


def _address(text: str | None) -> str:
    # aiosmtpd records the null sender as "<>".
    if text is None or text == "<>":
        return ""
    if _UNSAFE_IN_ADDRESS.search(text) is None or parse_path(f"<{text}>") == (text, ""):
        return text
    return _UNSAFE_IN_ADDRESS.sub("?", text)  # only a handler can set such an address
