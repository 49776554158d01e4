"""Handlers and settings of the servers that the fuzzer runs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import MISSING, AuthResult

if TYPE_CHECKING:
    import ssl


class Takes:
    """Takes every message, at once."""

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        return "250 2.0.0 Ok"


class Judges(Takes):
    """Has hooks of a transaction that never wait: they need no task."""

    async def handle_MAIL(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        envelope.mail_from = address
        return "250 2.1.0 Ok"

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        if "no" in address:
            return "550 5.1.1 No"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"


class Waits(Judges):
    """The same, and each hook waits."""

    async def handle_MAIL(self, *args: Any) -> str:
        await asyncio.sleep(0)
        return await super().handle_MAIL(*args)

    async def handle_RCPT(self, *args: Any) -> str:
        await asyncio.sleep(0.001)
        return await super().handle_RCPT(*args)

    async def handle_DATA(self, *args: Any) -> str:
        await asyncio.sleep(0.001)
        return await super().handle_DATA(*args)


class Delays(Waits):
    """Has each reply be delayed."""

    async def handle_CONNECT(self, server: Any, session: Any) -> Any:
        session.tarpit = 0.001  # that is as soon as deadlines are looked at
        return MISSING


class Leaves(Judges):
    """Has hooks of a session's end as well."""

    async def handle_QUIT(self, server: Any, session: Any, envelope: Any) -> str:
        return "221 2.0.0 Bye"

    async def handle_DISCONNECT(self, server: Any, session: Any) -> None:
        await asyncio.sleep(0)


async def _check(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
    await asyncio.sleep(0)
    return AuthResult(success=data.password == b"pass", handled=False, auth_data=data)


def variants(tls: ssl.SSLContext) -> list[tuple[Any, dict[str, Any]]]:
    trust = {"xclient_trust": ["127.0.0.1"], "xforward_trust": ["127.0.0.1"]}
    auth = {"authenticator": _check, "auth_require_tls": False}
    return [
        (Takes(), {}),
        (Waits(), {"session_options": auth, "max_errors": 100}),
        (Waits(), {"bare_newline": "normalize", "tls_context": tls}),
        (Takes(), {"bare_newline": "accept", "session_options": auth}),
        (Leaves(), {}),
        (Leaves(), {"listen": ["lmtp:127.0.0.1:0"], "bare_newline": "normalize"}),
        (Takes(), {"max_buffered": 5000, "max_recipients": 3, "max_errors": 2}),
        (Takes(), {"tls_context": tls, "require_starttls": True, "max_errors": 1000}),
        (Waits(), {"bare_newline": "reject", "max_line_length": 1000}),
        (Takes(), {"tarpit": 0.001, "max_errors": 100}),
        (Delays(), {"tls_context": tls, "session_options": auth}),
        (Leaves(), {"tls_context": tls, "session_options": auth, "max_errors": 100, **trust}),
        (Waits(), {"listen": ["lmtp:127.0.0.1:0"], "max_from_ip": 2, "deny": ["::1"], **trust}),
    ]
