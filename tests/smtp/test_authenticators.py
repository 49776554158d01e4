"""Authenticators: without one, and with one that fails."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import AuthResult
from support.auth import PLAIN, connected, hello

if TYPE_CHECKING:
    from support.tls import Certificates

pytestmark = pytest.mark.parametrize("transport", ["starttls", "smtps"])


async def test_without_an_authenticator_auth_is_not_offered(
    transport: str, certificates: Certificates
) -> None:
    async with connected(transport, certificates, authenticator=None) as client:
        assert await hello(client) == []
        assert (await client.say(f"AUTH PLAIN {PLAIN}")).code == 504


async def test_an_authenticator_that_raises_is_451_without_details(
    transport: str, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: Any) -> AuthResult:
        raise RuntimeError("secret")

    async with connected(transport, certificates, authenticator=fail) as client:
        await hello(client)
        reply = await client.say(f"AUTH PLAIN {PLAIN}")
        assert (reply.code, "secret" in reply.text) == (451, False)
        assert (await client.say("MAIL FROM:<a@b.c>")).code == 250


async def test_an_authenticator_that_exceeds_the_time_limit_is_451(
    transport: str, certificates: Certificates
) -> None:
    async def sleep(*_: Any) -> AuthResult:
        await asyncio.sleep(60)
        return AuthResult(success=True)

    options = {"authenticator": sleep, "handler_timeout": 0.2}
    async with connected(transport, certificates, **options) as client:
        await hello(client)
        assert (await client.say(f"AUTH PLAIN {PLAIN}")).code == 451
        assert (await client.say("NOOP")).code == 250


async def test_an_authenticator_that_fails_without_a_reply_gets_one_sent(
    transport: str, certificates: Certificates
) -> None:
    """AuthResult(success=False) means that the reply was sent; otherwise the client would hang."""

    async def refuse(*_: Any) -> AuthResult:
        return AuthResult(success=False)

    async with connected(transport, certificates, authenticator=refuse) as client:
        await hello(client)
        client.send(f"AUTH PLAIN {PLAIN}\r\nNOOP\r\n")
        assert (await client.reply()).code == 535
        assert (await client.reply()).code == 250
