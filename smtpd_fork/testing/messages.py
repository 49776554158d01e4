"""Messages for tests, with contents that programs have lost or changed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from smtpd_fork.message import Mail, MailClient, Recipient

__all__ = ["MESSAGES", "make_mail"]

_HEADER = b"From: a@example.org\r\nSubject: test\r\n\r\n"

MESSAGES: Mapping[str, bytes] = {
    "plain": _HEADER + b"hello\r\n",
    "empty": b"",
    "header alone": b"Subject: test\r\n",
    "header and an empty line": _HEADER,
    "text alone": b"hello\r\n",
    "no final newline": _HEADER + b"hello",
    "lines that begin with dots": _HEADER + b".\r\n..\r\n.hello\r\n...\r\n.",
    "lines that begin with From": _HEADER + b"From here on\r\n>From there\r\n\r\nFrom x\r\n",
    "an mbox line on top": b"From a@example.org Fri Nov 27 04:00:00 2026\r\n" + _HEADER + b"x\r\n",
    "octets beyond ASCII": _HEADER + bytes(range(128, 256)) + b"\r\n",
    "UTF-8 in the header": "Subject: Grüße\r\n\r\nGrüße\r\n".encode(),
    "a line of 998 octets": _HEADER + b"x" * 998 + b"\r\n",
    "a line of 100,000 octets": _HEADER + b"x" * 100_000 + b"\r\n",
    "many empty lines": _HEADER + b"\r\n" * 1000,
    "trailing spaces and tabs": _HEADER + b"hello \t \r\n \r\n",
    "a folded header": b"Subject: one\r\n two\r\n\tthree\r\nX-Empty:\r\n\r\nhello\r\n",
    "control characters": _HEADER + bytes(range(1, 10)) + b"\x0b\x0c\x0e\x1b[31m\x7f\r\n",
    "1 MB": _HEADER + b"0123456789abcdef" * 4 * 1024 * 16,
}
"""Contents of messages, by name; lines end in CR LF, as clients send them."""

_numbers = itertools.count(1)


def make_mail(
    content: bytes = MESSAGES["plain"],
    *,
    sender: str = "a@example.org",
    recipients: Sequence[str] = ("b@example.com",),
    **more: Any,
) -> Mail:
    """Return a message for a sink, with a new id.

    :param more: other fields of :class:`smtpd_fork.Mail`
    """
    number = next(_numbers)
    fields: dict[str, Any] = {
        "client": MailClient(("192.0.2.1", 40312), "client.example"),
        "trace": b"Received: from client.example ([192.0.2.1])\r\n"
        b"\tby mx.example.com (smtpd-fork) with ESMTP id test-%x;\r\n"
        b"\tFri, 27 Nov 2026 04:00:00 +0000\r\n" % number,
        "all_recipients": tuple(recipients),
        **more,
    }
    to = tuple(Recipient(each) for each in recipients)
    return Mail(f"test-{number:x}", sender, to, content, **fields)
