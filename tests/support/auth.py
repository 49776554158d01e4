"""AUTH: credentials, authenticators, and a client under TLS that is ready to authenticate."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import AuthResult

from smtpd_fork.sinks import Discard
from support.client import Client, Reply
from support.server import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.tls import Certificates

LOGIN, PASSWORD = b"bob", b"pass word"


def b64(text: bytes | str) -> str:
    return b64encode(text.encode() if isinstance(text, str) else text).decode()


PLAIN = b64(b"\0" + LOGIN + b"\0" + PASSWORD)
RIGHT = f"AUTH PLAIN {PLAIN}"
WRONG = b64(b"\0" + LOGIN + b"\0wrong")

HASH = "$2b$04$abcdefghijklmnopqrstuuFcV8WPKEefLKdOWfX8pW1yTVya21P7a"
"""The bcrypt hash of the password."""


def plain(user: str, password: bytes | str, identity: str = "") -> str:
    """Return an AUTH PLAIN command."""
    word = password if isinstance(password, str) else password.decode()
    return f"AUTH PLAIN {b64(chr(0).join([identity, user, word]))}"


async def tls_client(address: Any, certificates: Certificates, source: str | None = None) -> Client:
    """Return a client of *address* that has TLS by STARTTLS, and has said EHLO."""
    client = await Client.to(address, source=source)
    await client.greet()
    await client.start_tls(certificates.client)
    await client.say("EHLO x")
    return client


def check(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
    right = (data.login, data.password) == (LOGIN, PASSWORD)
    return AuthResult(success=right, handled=False, auth_data=data)


async def check_slowly(
    server: Any, session: Any, envelope: Any, mechanism: str, data: Any
) -> AuthResult:
    await asyncio.sleep(0.01)
    return check(server, session, envelope, mechanism, data)


class Look(Discard):
    """Stores the attributes of sessions at each message."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.seen.append((session.authenticated, session.auth_data, envelope.mail_params))
        return "250 2.0.0 Ok"


@asynccontextmanager
async def connected(
    transport: str,
    certificates: Certificates,
    handler: Any = None,
    *,
    authenticator: Any = check,
    **options: Any,
) -> AsyncIterator[Client]:
    """Serve, and yield a client after STARTTLS."""
    implicit = transport == "smtps"
    listen = ["smtps:127.0.0.1:0" if implicit else "127.0.0.1:0"]
    more = options.pop("session_options", {})
    if authenticator is not None:
        more = {"authenticator": authenticator, **more}
    tls = certificates.client if implicit else None
    async with (
        serve(
            handler or Discard(),
            listen=listen,
            tls_context=certificates.server,
            session_options=more,
            **options,
        ) as server,
        await Client.to(server.addresses[0], tls=tls) as client,
    ):
        await client.reply()
        if not implicit:
            offered = await client.say("EHLO x")
            assert not any(line.startswith("AUTH") for line in offered.lines)
            assert (await client.say("AUTH PLAIN")).code in {504, 538}
            await client.start_tls(certificates.client)
        yield client


async def hello(client: Client) -> list[str]:
    """Send EHLO; return the offered mechanisms."""
    lines = (await client.say("EHLO x")).lines
    return [word for line in lines if line.startswith("AUTH ") for word in line.split()[1:]]


async def dialogue(client: Client, *lines: str) -> Reply:
    """Send one line after another; the reply to each but the last must be 334."""
    for line in lines[:-1]:
        reply = await client.say(line)
        assert reply.code == 334, (line, reply)
    return await client.say(lines[-1])
