"""Decide how to send a message to a next hop that lacks extensions which our client has used.

A message is sent unchanged or refused. It is never re-encoded, because that breaks signatures.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from smtpd_fork.dialogue.path import parse_path
from smtpd_fork.hops.content import PLAIN, has_long_lines

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smtpd_fork.hops.content import Facts
    from smtpd_fork.message import Mail, Recipient

__all__ = ["Form", "form_of", "recipient_command", "sender_command"]

UTF8_ADDRESS = "553 5.6.7 The next mail server does not take addresses with non-ASCII characters"
UTF8_HEADER = "554 5.6.9 The next mail server does not take headers with non-ASCII characters"
EIGHT_BIT = "554 5.6.3 The next mail server does not take 8-bit content"
BINARY = "554 5.6.3 The next mail server does not take binary content"
BARE = "554 5.6.0 The message has a bare CR or LF, and cannot be passed on"
NUL = "554 5.6.0 The message has a NUL, and cannot be passed on"
MALFORMED = "553 5.1.3 The address cannot be passed on"
NOTIFICATION = "451 4.5.4 The next mail server sends no delivery notifications, try again later"

_UNSAFE = re.compile("[\x00-\x20\x7f<>\ud800-\udfff]")


class Form(NamedTuple):
    """The commands by which a message is sent.

    :ivar sender: the command MAIL
    :ivar recipients: the commands RCPT, for the recipients without a refusal
    :ivar refusals: for each recipient the reply that refuses it here; None: RCPT is sent for it
    :ivar chunked: whether BDAT is used instead of DATA
    """

    sender: bytes
    recipients: list[bytes]
    refusals: list[str | None]
    chunked: bool


def form_of(
    mail: Mail, head: bytes, facts: Facts, offered: Mapping[str, str], *, lmtp: bool
) -> Form | str:
    """Return the commands for *mail*, or the reply if it cannot be sent.

    :param head: fields to send before ``mail.content``
    :param facts: properties of ``mail.content``
    :param offered: extensions of the hop
    :param lmtp: whether this is the final delivery, which accepts UTF-8 headers in any case
    """
    refusal = None
    if facts is not PLAIN or mail.utf8 or mail.binary:
        refusal = _body_refusal(mail, head, facts, offered, lmtp=lmtp)
    if refusal is None and "DSN" not in offered and _wants_notification(mail.recipients):
        refusal = NOTIFICATION
    if refusal is not None:
        return refusal
    declared = _declared(mail, facts, offered)
    if "SIZE" in offered:
        declared.append(f"SIZE={len(head) + len(mail.content)}")
    utf8 = mail.utf8 and "SMTPUTF8" in offered
    try:
        sender = sender_command(mail.sender, declared, utf8=utf8)
    except ValueError as error:
        return str(error)
    return _with_recipients(mail, sender, offered, utf8=utf8)


def _declared(mail: Mail, facts: Facts, offered: Mapping[str, str]) -> list[str]:
    """Return the parameters of MAIL."""
    declared = []
    if mail.binary and not _consists_of_lines(mail, facts):
        declared.append("BODY=BINARYMIME")
    elif "8BITMIME" in offered and (mail.body == "8BITMIME" or not facts.ascii):
        declared.append("BODY=8BITMIME")
    if mail.utf8 and "SMTPUTF8" in offered:
        declared.append("SMTPUTF8")
    if mail.parameters and "DSN" in offered:
        declared += _parameters(mail.parameters, ("RET", "ENVID"))
    return declared


def _with_recipients(mail: Mail, sender: bytes, offered: Mapping[str, str], *, utf8: bool) -> Form:
    commands: list[bytes] = []
    refusals: list[str | None] = []
    for each in mail.recipients:
        try:
            parameters = (
                _parameters(each.parameters, ("NOTIFY", "ORCPT"))
                if each.parameters and "DSN" in offered
                else ()
            )
            commands.append(recipient_command(each.address, parameters, utf8=utf8))
            refusals.append(None)
        except ValueError as error:
            refusals.append(str(error))
    chunked = "CHUNKING" in offered and (
        b"BODY=BINARYMIME" in sender or not mail.content.endswith(b"\r\n")
    )
    return Form(sender, commands, refusals, chunked)


def _body_refusal(
    mail: Mail, head: bytes, facts: Facts, offered: Mapping[str, str], *, lmtp: bool
) -> str | None:
    """Return the reply if the content needs an extension that the hop lacks; None otherwise."""
    if mail.binary and not _consists_of_lines(mail, facts):
        return None if {"BINARYMIME", "CHUNKING"} <= offered.keys() else BINARY
    if facts.bare or facts.nul:
        # With DATA a server that treats a bare LF as a line end would see another message.
        return BARE if facts.bare else NUL
    if not facts.ascii and "8BITMIME" not in offered:
        return EIGHT_BIT
    if mail.utf8 and "SMTPUTF8" not in offered and not lmtp:
        end = mail.content.find(b"\r\n\r\n")
        header = mail.content if end < 0 else mail.content[:end]
        if not head.isascii() or not header.isascii():
            return UTF8_HEADER
    return None


def _consists_of_lines(mail: Mail, facts: Facts) -> bool:
    """Return whether binary content consists of valid lines, so that BINARYMIME is not needed."""
    return not (facts.bare or facts.nul or has_long_lines(mail.content))


def _parameters(given: Mapping[str, str | bool], names: Sequence[str]) -> list[str]:
    """Return the parameters of DSN that can be sent unchanged: xtext is ASCII (RFC 3461)."""
    found = [(name, given.get(name)) for name in names]
    return [
        f"{name}={value}"
        for name, value in found
        if isinstance(value, str) and value.isascii() and not _UNSAFE.search(value)
    ]


def _wants_notification(recipients: Sequence[Recipient]) -> bool:
    """Return whether a recipient has NOTIFY=SUCCESS: accepting that requires to send a DSN."""
    return any(
        "SUCCESS" in str(each.parameters.get("NOTIFY", "")).upper().split(",")
        for each in recipients
        if each.parameters
    )


def sender_command(address: str, parameters: Sequence[str] = (), *, utf8: bool) -> bytes:
    """Return the command MAIL.

    :raises ValueError: the address cannot be sent; the text is the reply
    """
    return _command("MAIL FROM", address, parameters, utf8=utf8)


def recipient_command(address: str, parameters: Sequence[str] = (), *, utf8: bool) -> bytes:
    """Return the command RCPT.

    :raises ValueError: the address cannot be sent; the text is the reply
    """
    return _command("RCPT TO", address, parameters, utf8=utf8)


def _command(verb: str, address: str, parameters: Sequence[str], *, utf8: bool) -> bytes:
    if _UNSAFE.search(address) is not None and parse_path(f"<{address}>") != (address, ""):
        raise ValueError(MALFORMED)  # set by a handler: a client could not send it
    if not utf8 and not address.isascii():
        raise ValueError(UTF8_ADDRESS)
    end = " ".join(["", *parameters]) if parameters else ""
    try:
        return f"{verb}:<{address}>{end}\r\n".encode()
    except UnicodeEncodeError:
        raise ValueError(MALFORMED) from None
