"""The filter auth with a Python function."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import AuthResult
from support.auth import LOGIN, PASSWORD, RIGHT, connected, hello, plain

from smtpd_fork.errors import HandlerError
from smtpd_fork.filters import Auth
from smtpd_fork.handlers import load_handlers
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from pathlib import Path

    from support.tls import Certificates


async def check(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
    await asyncio.sleep(0)
    right = (data.login, data.password) == (LOGIN, PASSWORD)
    if data.login == b"away":
        return AuthResult(success=False, handled=False, message="454 4.7.0 The database is away")
    return AuthResult(success=right, handled=False, auth_data={"id": 7} if right else None)


class Look(Discard):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def handle_MAIL(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        self.seen.append(session.auth_data)
        envelope.mail_from = address
        return "250 OK"


async def test_a_custom_authenticator_decides_and_the_limits_apply_to_it(
    certificates: Certificates,
) -> None:
    look = Look()
    auth = Auth(authenticator=check, max_failures=2)
    async with connected("starttls", certificates, [auth, look], authenticator=None) as client:
        assert await hello(client) == ["PLAIN", "LOGIN"]
        assert (await client.say(plain("away", "x"))).code == 454
        assert (await client.say(plain("bob", "x"))).code == 535
        assert (await client.say(RIGHT)).code == 235
        await client.say("MAIL FROM:<a@example.com>")
    assert look.seen == [{"id": 7}]


async def test_an_authenticator_that_raises_or_hangs_gets_451(certificates: Certificates) -> None:
    async def fail(*_: Any) -> AuthResult:
        raise RuntimeError("secret")

    async def hang(*_: Any) -> AuthResult:
        await asyncio.sleep(60)
        return AuthResult(success=True)

    for function in (fail, hang):
        auth = Auth(authenticator=function)
        options: dict[str, Any] = {"authenticator": None, "handler_timeout": 0.2}
        async with connected("starttls", certificates, [auth], **options) as client:
            await hello(client)
            reply = await client.say(RIGHT)
            assert (reply.code, "secret" in reply.text) == (451, False)
            assert (await client.say("MAIL FROM:<a@example.com>")).code == 250
        assert auth._failures._running == {}


def test_an_authenticator_can_be_configured_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_auth_of_a_test.py").write_text(
        "def check(server, session, envelope, mechanism, auth_data): ...\nx = 1\n"
        "def other(login, password): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    load_handlers(["auth:authenticator=my_auth_of_a_test:check", "discard"])
    for name, reason in [
        ("my_auth_of_a_test:x", "expected a function with the parameters server, session"),
        ("my_auth_of_a_test:other", "expected a function with the parameters server, session"),
        ("my_auth_of_a_test:none", "has no attribute 'none'"),
        ("no_such_module:check", "No module named"),
        ("os", "cannot be imported"),
    ]:
        with pytest.raises(HandlerError, match=reason):
            load_handlers([f"auth:authenticator={name}", "discard"])
