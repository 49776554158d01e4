"""Mechanisms of AUTH that users add: by a subclass, or by a handler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import AuthResult, auth_mechanism
from support.auth import b64, connected, dialogue, hello

from smtpd_fork.sinks import Discard
from smtpd_fork.smtp import SMTP

if TYPE_CHECKING:
    from support.tls import Certificates

pytestmark = pytest.mark.parametrize("transport", ["starttls", "smtps"])


class Custom(SMTP):
    """A mechanism that is named by its method, and one that is named by its decorator."""

    async def auth_X__TOKEN(self, server: Any, args: list[str]) -> AuthResult:
        token = await self.challenge_auth("which?")
        return AuthResult(success=token == b"token", handled=False)

    @auth_mechanism("x-decorated")
    async def auth_whatever(self, server: Any, args: list[str]) -> AuthResult:
        return AuthResult(success=args == ["X-DECORATED", "yes"], handled=False)


async def test_a_subclass_may_have_mechanisms(transport: str, certificates: Certificates) -> None:
    options = {"session_class": Custom, "authenticator": None}
    async with connected(transport, certificates, **options) as client:
        assert await hello(client) == ["X-DECORATED", "X-TOKEN"]
        assert await client.say("AUTH X-TOKEN") == (334, [b64("which?")])
        assert (await client.say(b64("no"))).code == 535
        assert (await client.say("AUTH x-decorated no")).code == 535
        assert (await client.say("AUTH x-decorated yes")).code == 235


async def test_a_handler_may_have_mechanisms(transport: str, certificates: Certificates) -> None:
    class Handler(Discard):
        async def auth_XFOO(self, server: Any, args: list[str]) -> AuthResult:
            answer = await server.challenge_auth("foo?")
            return AuthResult(success=answer == b"foo!", handled=False)

    async with connected(transport, certificates, Handler()) as client:
        assert await hello(client) == ["PLAIN", "LOGIN", "XFOO"]
        assert (await dialogue(client, "AUTH XFOO", b64("bar"))).code == 535
        assert (await dialogue(client, "AUTH XFOO", b64("foo!"))).code == 235


async def test_handle_auth_is_called_before_the_mechanism(
    transport: str, certificates: Certificates
) -> None:
    class Handler(Discard):
        async def handle_AUTH(self, server: Any, session: Any, envelope: Any, args: Any) -> str:
            session.authenticated = args == ["PLAIN", "yes"]
            return "235 2.7.0 Yes" if session.authenticated else "535 5.7.8 No"

    async with connected(transport, certificates, Handler()) as client:
        await hello(client)
        assert await client.say("AUTH plain no") == (535, ["5.7.8 No"])
        assert await client.say("AUTH plain yes") == (235, ["2.7.0 Yes"])
