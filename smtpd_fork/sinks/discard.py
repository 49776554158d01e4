"""Discard: takes every message and keeps none, for tests and measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smtpd_fork.sinks.base import Sink

if TYPE_CHECKING:
    from aiosmtpd.smtp import Envelope
    from aiosmtpd.smtp import Session as AnySession

__all__ = ["Discard"]


class Discard(Sink):
    """Takes every message and keeps none."""

    supports_binarymime = True

    async def handle_DATA(self, server: Any, session: AnySession, envelope: Envelope) -> str:
        """Forget a message."""
        return "250 2.0.0 Ok: discarded"
