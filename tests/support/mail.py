"""Mail for sinks that are called without a server."""

from __future__ import annotations

from typing import Any

from smtpd_fork.message import Mail, MailClient, Recipient


def a_mail(
    *recipients: str,
    content: bytes = b"Subject: x\r\n\r\nhello\r\n",
    sender: str = "a@example.org",
    **facts: Any,
) -> Mail:
    """Return a message to *recipients*; default: to b@example.com."""
    facts.setdefault("client", MailClient(("192.0.2.1", 4025), "client.example"))
    facts.setdefault("trace", b"Received: from client.example\r\n\tby mx.example.com;\r\n\tnow\r\n")
    addresses = recipients or ("b@example.com",)
    return Mail("s1-1", sender, tuple(map(Recipient, addresses)), content, **facts)


HEAD_LINES = 3
"""Lines of the trace of :func:`a_mail`, without Return-Path and Delivered-To."""
