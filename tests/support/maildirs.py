"""Maildirs of recipients: their content."""

from __future__ import annotations

from contextlib import suppress
from email import message_from_string
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def stored(path: Path) -> list[str]:
    """Return the messages of one Maildir."""
    with suppress(FileNotFoundError):
        assert list((path / "tmp").iterdir()) == []
        return [each.read_text() for each in sorted((path / "new").iterdir())]
    return []


def delivered_to(text: str) -> list[str]:
    return message_from_string(text).get_all("Delivered-To", [])
