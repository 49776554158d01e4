"""Trace headers: what a server writes on top of a message (RFC 5321 4.4)."""

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
"""Characters of a stranger's word that are kept: a domain's length (RFC 5321 4.5.3.1.2)."""

_PLAIN = re.compile(r"[A-Za-z0-9._\[\]:-]*")
_SPECIAL = set(' <>()\\",;@=')
"""What could end a word of Received, or begin a comment, a quoted string or an encoded word there;
Postfix takes out the same of the names that clients give themselves, but for the last."""

_date = lru_cache(maxsize=1)(format_datetime)
"""Many messages come in one second."""

CLIENTS = 256
"""Clients that are remembered as they are shown: many send several messages."""

_UNSAFE_IN_ADDRESS = re.compile("[\x00-\x1f\x7f-\x9f<>\u2028\u2029\ud800-\udfff]")

LONGEST_SEARCH = 1 << 16
"""Bytes in which the header has to begin; a message with more lines of an mbox on top is text. All
of it is looked at in a millisecond."""

_FIELD = rb"[!-9;-~]++[ \t]*+:"
"""How a header field begins (RFC 5322 2.2 and 4.5)."""

_BEGINS_WITH_HEADER = re.compile(_FIELD + rb"|\r?\n")
_MBOX_LINES = re.compile(rb"(?:>*+From (?![ \t]*+:)[^\n]*+\n)++(?=" + _FIELD + rb")")
""""From x ..." as mbox(5) has it on top of each message, also in its quoted form."""


def received_field(
    hostname: str, session: AnySession, envelope: Envelope, queue_id: str, now: datetime
) -> bytes:
    """Return the field ``Received``, whose lines end in CR LF.

    In the name that the client gave itself every character that could change the structure of the
    header is replaced by ``?``.

    :param hostname: of this host
    :param queue_id: the id in the reply
    :param now: with its time zone
    """
    client = _client(session.host_name or "unknown", session.peer, utf8=envelope.smtp_utf8)
    lines = [f"Received: from {client}"]
    protocol = protocol_name(session, envelope)
    lines.append(f"\tby {hostname} (smtpd-fork) with {protocol} id {queue_id}")
    if cipher := _cipher(session):
        lines.append(f"\t({cipher})")
    if len(envelope.rcpt_tos) == 1:  # more would tell each recipient of the others (7.2)
        lines.append(f"\tfor <{_address(envelope.rcpt_tos[0])}>")
    lines[-1] += ";"
    lines.append(f"\t{_date(now)}")
    return ("\r\n".join(lines) + "\r\n").encode("utf-8", "replace")


def final_fields(sender: str, recipients: Iterable[str]) -> bytes:
    """Return ``Return-Path``, and ``Delivered-To`` for each recipient, as they came.

    Only the server that puts a message into a mailbox adds them (RFC 5321 4.4).
    """
    lines = [f"Return-Path: <{_address(sender)}>"]
    lines += [f"Delivered-To: {_address(recipient)}" for recipient in recipients]
    return ("\r\n".join(lines) + "\r\n").encode("utf-8", "replace")


def above(head: bytes, content: bytes) -> tuple[bytes, bytes]:
    """Return *head* and the rest of *content* such that the header of *content* goes on below it.

    A line of an mbox file above the header becomes a field ``Mailbox-Line``, as Postfix has it.
    A message without a header gets the empty line between header and text.

    :param head: fields, whose lines end as those of *content*
    """
    if lines := _MBOX_LINES.match(content, 0, LONGEST_SEARCH):
        fields = [b"Mailbox-Line: " + line for line in lines[0].splitlines(keepends=True)]
        return head + b"".join(fields), content[lines.end() :]
    if content and not _BEGINS_WITH_HEADER.match(content, 0, LONGEST_SEARCH):
        head += b"\r\n" if head.endswith(b"\r\n") else b"\n"
    return head, content


def end_of_mbox_lines(content: bytes) -> int:
    """Return where the header begins: behind lines of an mbox file, see :func:`above`."""
    lines = _MBOX_LINES.match(content, 0, LONGEST_SEARCH)
    return lines.end() if lines else 0


def protocol_name(session: AnySession, envelope: Envelope) -> str:
    """Return the protocol by its registered name.

    That is SMTP, ESMTP or LMTP, with S for TLS and A for AUTH (RFC 3848); UTF8SMTP or UTF8LMTP and
    so on for a message with SMTPUTF8 (RFC 6531 4.3).
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
    """Return a stranger's word as one word of a header.

    :param utf8: whether the header may hold more than ASCII (RFC 6532)
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
    return _UNSAFE_IN_ADDRESS.sub("?", text)  # it is a handler's, no client could send it
