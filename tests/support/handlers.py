"""Handlers; stand-ins for what users write."""

from __future__ import annotations

from typing import Any


class Collect:
    """Takes every message, and keeps the envelopes that it is handed."""

    def __init__(self) -> None:
        self.envelopes: list[Any] = []

    @property
    def messages(self) -> list[bytes]:
        return [envelope.content for envelope in self.envelopes]

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.envelopes.append(envelope)
        return "250 2.0.0 Ok"
