"""Detect mail loops: messages that servers send to each other endlessly (RFC 5321 6.3)."""

from __future__ import annotations

import re

from smtpd_fork.message.fields import fields
from smtpd_fork.message.mailbox import mailbox_of

__all__ = ["LONG_HEADER", "earlier_mailboxes", "has_long_header"]

_DELIVERED = re.compile(rb"\n(?i:delivered-to)")

MOST_FIRST_LINE = 64
"""Bytes at the start of a message that are searched for a field on the first line."""

LONG_HEADER = 1 << 16
"""Bytes; usual headers have less than a tenth of this."""

LONGEST_SEARCH = 1 << 18
"""Bytes of a header that are searched; servers add ``Delivered-To`` at the top. The search of a
header of 25 MB would take ten seconds, and its addresses hundreds of MB. ``--max-hops`` ends
such a mail loop as well."""


def has_long_header(content: bytes) -> bool:
    """Return whether a header is so long that a thread should search it, or has no end."""
    return len(content) > LONG_HEADER and content.find(b"\n\r\n", 0, LONG_HEADER) < 0


def earlier_mailboxes(content: bytes) -> frozenset[str]:
    """Return the mailbox keys of all ``Delivered-To`` fields of a message.

    Only the first 256 KiB of the header are searched.
    """
    content = content[:LONGEST_SEARCH]
    if not _may_have_been_delivered(content):
        return frozenset()
    return frozenset(
        mailbox_of(field.value.strip().decode("utf-8", "replace")).key
        for field in fields(content)
        if field.name.lower() == b"delivered-to"
    )


def _may_have_been_delivered(content: bytes) -> bool:
    """Return whether the header may have a field ``Delivered-To``; takes microseconds."""
    if _DELIVERED.search(b"\n" + content[:MOST_FIRST_LINE]):
        return True
    for start in range(0, len(content), LONG_HEADER):
        stop = start + LONG_HEADER + MOST_FIRST_LINE
        end = content.find(b"\n\r\n", start, stop)
        if _DELIVERED.search(content, start, stop if end < 0 else end):
            return True
        if end >= 0:
            break
    return False
