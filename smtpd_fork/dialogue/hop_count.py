"""Hop count: counts the servers that a message has passed, to detect mail loops (RFC 5321 6.3)."""

from __future__ import annotations

import re
from itertools import islice

__all__ = ["hop_count"]

_RECEIVED = re.compile(rb"^received[ \t]*:", re.IGNORECASE | re.MULTILINE)

LONGEST_SEARCH = 1 << 18
"""Bytes of a header that are searched, in at most 2 ms. Servers add Received at the top."""


def hop_count(content: bytes, limit: int) -> int:
    """Return the number of ``Received`` fields of a message.

    :param limit: a header with fewer lines is not searched, and the result is 0; the maximum of the
        result is *limit* + 1
    """
    if content.startswith((b"\n", b"\r\n")):
        return 0
    end = content.find(b"\n\r\n", 0, LONGEST_SEARCH)
    if end < 0:  # perhaps the message has bare newlines
        end = content.find(b"\n\n", 0, LONGEST_SEARCH)
    if end < 0:
        end = min(len(content), LONGEST_SEARCH)
    if content.count(b"\n", 0, end) < limit:
        return 0
    return sum(1 for _ in islice(_RECEIVED.finditer(content, 0, end), limit + 1))
