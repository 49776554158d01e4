"""Real clients that authenticate: swaks, and aiosmtplib."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiosmtplib
import pytest
from aiosmtpd.smtp import AuthResult
from support.peers import peer
from support.server import serve

from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from support.tls import Certificates

PASSWORD = b"open sesame"


async def check(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
    await asyncio.sleep(0)  # as an authenticator that queries a database
    ok = (data.login, data.password) == (b"ali", PASSWORD)
    return AuthResult(success=ok, handled=False, auth_data=data)


def options(certificates: Certificates, *listen: str) -> dict[str, Any]:
    return {
        "listen": listen or ("127.0.0.1:0", "smtps:127.0.0.1:0"),
        "tls_context": certificates.server,
        "session_options": {"authenticator": check, "auth_required": True},
    }


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize("tls", ["--tls", "--tls-on-connect"])
async def test_swaks_authenticates(tls: str, mechanism: str, certificates: Certificates) -> None:
    swaks = peer("swaks")
    async with serve(Discard(), **options(certificates)) as server:
        for password, status in [(PASSWORD.decode(), 0), ("wrong", 28)]:
            place = server.addresses[tls == "--tls-on-connect"]
            arguments = ["--server", f"{place[0]}:{place[1]}", tls, "--to", "b@example.com"]
            arguments += ["--auth", mechanism, "--auth-user", "ali", "--auth-password", password]
            process = await asyncio.create_subprocess_exec(
                swaks, *arguments, stdout=asyncio.subprocess.PIPE
            )
            printed, _ = await asyncio.wait_for(process.communicate(), 20)
            assert process.returncode == status, printed.decode()


@pytest.mark.parametrize("implicit", [False, True])
async def test_aiosmtplib_authenticates_and_delivers(
    implicit: bool, certificates: Certificates
) -> None:
    async with serve(Discard(), **options(certificates)) as server:
        port = server.listeners[implicit].bound[1]
        client = aiosmtplib.SMTP(
            hostname="localhost",
            port=port,
            use_tls=implicit,
            start_tls=not implicit,
            tls_context=certificates.client,
            local_hostname="client.example",
            timeout=20,
        )
        async with client:
            await client.login("ali", PASSWORD.decode())
            errors, reply = await client.sendmail(
                "a@example.com", ["b@example.com"], "Subject: x\r\n\r\nx\r\n"
            )
        assert errors == {}
        assert reply.startswith("2.0.0 Ok")


async def test_a_wrong_password_of_aiosmtplib_is_535(certificates: Certificates) -> None:
    async with serve(Discard(), **options(certificates)) as server:
        client = aiosmtplib.SMTP(
            hostname="localhost",
            port=server.port,
            start_tls=True,
            tls_context=certificates.client,
            local_hostname="client.example",
            timeout=20,
        )
        async with client:
            with pytest.raises(aiosmtplib.SMTPAuthenticationError) as caught:
                await client.login("ali", "wrong")
            assert caught.value.code == 535
