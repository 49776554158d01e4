"""Handlers; stand-ins for what users write."""

from __future__ import annotations

from typing import Any

from smtpd_fork.sinks import Discard


class Collect:
    """Takes every message, and keeps the envelopes that it is handed."""

    supports_dsn = supports_binarymime = True

    def __init__(self) -> None:
        self.envelopes: list[Any] = []

    @property
    def messages(self) -> list[bytes]:
        return [envelope.content for envelope in self.envelopes]

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.envelopes.append(envelope)
        return "250 2.0.0 Ok"


class Notes(Discard):
    """Takes every message, and keeps the sessions that said EHLO."""

    def __init__(self) -> None:
        self.sessions: list[Any] = []

    async def handle_EHLO(
        self, server: Any, session: Any, envelope: Any, name: str, replies: list[str]
    ) -> list[str]:
        session.host_name = name
        self.sessions.append(session)
        return replies
