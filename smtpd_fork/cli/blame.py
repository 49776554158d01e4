"""Blame: which settings led to an error."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from smtpd_fork.errors import SmtpdForkError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["blaming"]


@contextmanager
def blaming(*settings: str) -> Iterator[None]:
    """Note on an error which settings led to it."""
    try:
        yield
    except SmtpdForkError as error:
        error.settings = settings
        raise
