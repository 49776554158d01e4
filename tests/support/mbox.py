"""Mboxes in tests: messages for them, and their content."""

from __future__ import annotations

import mailbox
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def subjects(path: Path) -> list[str]:
    box = mailbox.mbox(path, create=False)
    try:
        return [str(message["Subject"]) for message in box]
    finally:
        box.close()


def a_message(subject: str, body: bytes = b"hello\r\n") -> bytes:
    return b"Subject: %b\r\n\r\n%b" % (subject.encode(), body)
