"""Messages with an envelope, for sinks and filters that are called without a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from smtpd_fork.message import Mail, MailClient, Recipient

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

TRACE = b"Received: from client.example\r\n\tby mx.example.com;\r\n\tnow\r\n"

HEAD_LINES = 3
"""The trace header, without Return-Path and Delivered-To."""

CONTENT = b"Subject: hello\r\n\r\nhello\r\n"

contents: SearchStrategy[bytes] = st.binary(max_size=300) | st.binary(max_size=300).map(
    lambda text: b"Subject: x\r\n\r\n" + text
)
"""Contents of messages: any bytes, with or without a header."""


class Counted(bytes):
    """A message that counts the searches for a line of it."""

    looks = 0

    def find(self, *args: Any) -> int:
        self.looks += 1
        return super().find(*args)


def a_mail(
    *recipients: str, content: bytes = CONTENT, sender: str = "a@example.org", **facts: Any
) -> Mail:
    """Return a message to *recipients*; default: to b@example.com."""
    facts.setdefault("client", MailClient(("192.0.2.7", 4711), "client.example"))
    facts.setdefault("trace", TRACE)
    addresses = recipients or ("b@example.com",)
    return Mail("77-1-1", sender, tuple(map(Recipient, addresses)), content, **facts)


def mail(content: bytes = CONTENT, *to: str, **facts: Any) -> Mail:
    """Return a message with *content*, as :func:`a_mail` does."""
    return a_mail(*to, content=content, **facts)


def large(size: int = 25_000_000) -> bytes:
    """Return a message of many different lines."""
    head = b"Subject: large\r\n\r\n"
    lines = (b"%070d\r\n" % number for number in range((size - len(head)) // 72))
    text = head + b"".join(lines)
    return text + b"x" * (size - len(text))
