"""Handlers as users write them, and handlers that store what their hooks receive."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from aiosmtpd.smtp import AuthResult

from smtpd_fork.dialogue import Envelope, Session
from smtpd_fork.sinks import Discard


class Collect:
    """Accepts every message, and stores the envelopes."""

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
    """Accepts every message, and stores the sessions that sent EHLO."""

    def __init__(self) -> None:
        self.sessions: list[Any] = []

    async def handle_EHLO(
        self, server: Any, session: Any, envelope: Any, name: str, replies: list[str]
    ) -> list[str]:
        session.host_name = name
        self.sessions.append(session)
        return replies


class Keep:
    """Stores messages, and answers at once."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.got.append((envelope.mail_from, tuple(envelope.rcpt_tos), envelope.content))
        return "250 2.0.0 Ok"


class KeepSlowly(Keep):
    """Stores messages, and answers with a delay: packets arrive while a hook runs."""

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        await asyncio.sleep(0)
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, *args: Any) -> str:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return await super().handle_DATA(*args)


class Trusts(KeepSlowly):
    """The same handler, which also accepts PROXY headers."""

    async def handle_PROXY(self, server: Any, session: Any, envelope: Any, proxy_data: Any) -> bool:
        await asyncio.sleep(0)
        return True


def check_password(
    server: Any, session: Any, envelope: Any, mechanism: str, data: Any
) -> AuthResult:
    return AuthResult(success=data.password == b"pass", handled=False, auth_data=data)


def a_session(**facts: Any) -> Any:
    session = Session(SimpleNamespace(), "id-1")
    session.peer = ("192.0.2.1", 4025)
    session.extended_smtp = True
    for name, value in facts.items():
        setattr(session, name, value)
    return session


def an_envelope(sender: str | None, *recipients: str, utf8: bool = False) -> Envelope:
    envelope = Envelope()
    envelope.mail_from, envelope.rcpt_tos = sender, list(recipients)
    envelope.smtp_utf8 = utf8
    return envelope
