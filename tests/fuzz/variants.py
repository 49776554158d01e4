"""Handlers and settings of the servers that the fuzzer runs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import MISSING, AuthResult

from smtpd_fork.filters import Auth

if TYPE_CHECKING:
    import ssl


class Takes:
    """Accepts every message at once."""

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        return "250 2.0.0 Ok"


class Judges(Takes):
    """Has hooks for a transaction that never wait, so they need no task."""

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
    """The same hooks, each of which waits."""

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
    """Delays each reply."""

    async def handle_CONNECT(self, server: Any, session: Any) -> Any:
        session.tarpit = 0.001  # The delay is over when deadlines are next checked.
        return MISSING


class Wavers(Waits):
    """Starts and stops delaying replies in the middle of the client's input."""

    async def handle_EHLO(
        self, server: Any, session: Any, envelope: Any, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        session.tarpit = 0.0 if session.tarpit else 0.02
        await asyncio.sleep(0)
        return responses

    async def handle_RCPT(self, *args: Any) -> str:
        session = args[1]
        session.tarpit = 0.0 if session.tarpit else 0.02
        return await super().handle_RCPT(*args)

    async def handle_DISCONNECT(self, server: Any, session: Any) -> None:
        await asyncio.sleep(0)


class Leaves(Judges):
    """Has hooks for the end of a session as well."""

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
    fails: dict[str, Any] = {"max_failures": 3, "max_user_failures": 5, "failure_period": 0.5}
    checks = Auth(authenticator=_check, require_tls="never", required=True, **fails)
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
        (Wavers(), {"tls_context": tls, "session_options": auth, "tarpit": 0.02, **trust}),
        ([checks, Wavers()], {"tls_context": tls, "max_errors": 100, **trust}),
        (Wavers(), {"tls_context": tls, "require_starttls": True, "greet_pause": 0.01, **trust}),
        (Wavers(), {"tls_context": tls, "session_timeout": 0.05, "tarpit": 0.02, **trust}),
        (Delays(), {"limit_connections": 10, "tarpit": 0.01, "max_from_ip": 0, **trust}),
    ]
