"""AUTH: the clients that may authenticate, the mechanisms, and the limit of attempts."""

from __future__ import annotations

import asyncio
import smtplib
from base64 import b64decode
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import AuthResult
from support.auth import (
    LOGIN,
    PASSWORD,
    PLAIN,
    WRONG,
    Look,
    b64,
    check,
    check_slowly,
    connected,
    dialogue,
    hello,
)
from support.server import serve

from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    import ssl

    from support.tls import Certificates

pytestmark = pytest.mark.parametrize("transport", ["starttls", "smtps"])

GOOD = {
    "plain, initial response": [f"AUTH PLAIN {PLAIN}"],
    "plain, challenge": ["AUTH PLAIN", PLAIN],
    "plain, with an identity": [
        f"AUTH PLAIN {b64(b'other' + bytes(1) + LOGIN + bytes(1) + PASSWORD)}"
    ],
    "login, challenge": ["AUTH LOGIN", b64(LOGIN), b64(PASSWORD)],
    "login, initial response": [f"AUTH LOGIN {b64(LOGIN)}", b64(PASSWORD)],
    "lower case": [f"auth plain {PLAIN}"],
    "lower case login": ["auth login", b64(LOGIN), b64(PASSWORD)],
}


@pytest.mark.parametrize("authenticator", [check, check_slowly])
@pytest.mark.parametrize("lines", GOOD.values(), ids=GOOD.keys())
async def test_a_client_is_authenticated(
    transport: str, certificates: Certificates, lines: list[str], authenticator: Any
) -> None:
    handler = Look()
    async with connected(transport, certificates, handler, authenticator=authenticator) as client:
        assert await hello(client) == ["PLAIN", "LOGIN"]
        reply = await dialogue(client, *lines)
        assert (reply.code, reply.text[:5]) == (235, "2.7.0")
        assert (await client.deliver()).code == 250
        assert (await client.say(f"AUTH PLAIN {PLAIN}")).code == 503
    ((authenticated, data, _),) = handler.seen
    assert authenticated
    assert (data.login, data.password) == (LOGIN, PASSWORD)


BAD: dict[str, tuple[list[str], int]] = {
    "wrong password": ([f"AUTH PLAIN {WRONG}"], 535),
    "wrong password, login": (["AUTH LOGIN", b64(LOGIN), b64("x")], 535),
    "abort": (["AUTH PLAIN", "*"], 501),
    "abort of login": (["AUTH LOGIN", "*"], 501),
    "abort of login's second": (["AUTH LOGIN", b64(LOGIN), "*"], 501),
    "no base64": (["AUTH PLAIN %%%"], 501),
    "no base64 in an answer": (["AUTH PLAIN", "%%%"], 501),
    "not ascii in an answer": (["AUTH PLAIN", "ä"], 501),
    "bad padding": (["AUTH PLAIN AGE"], 501),
    "an empty initial response": (["AUTH PLAIN ="], 501),
    "an empty answer": (["AUTH PLAIN", ""], 501),
    "one part": ([f"AUTH PLAIN {b64('x')}"], 501),
    "four parts": ([f"AUTH PLAIN {b64(bytes(3))}"], 501),
    "no mechanism": (["AUTH"], 501),
    "unknown mechanism": (["AUTH CRAM-MD5"], 504),
    "too many words": ([f"AUTH PLAIN {PLAIN} x"], 501),
    "too long an answer": (["AUTH PLAIN", "A" * 20_000], 501),
    "bare CR in an answer": (["AUTH PLAIN", "AAAA\rNOOP"], 501),
}


@pytest.mark.parametrize(("lines", "code"), BAD.values(), ids=BAD.keys())
async def test_a_failed_attempt_gets_535_and_the_next_one_may_succeed(
    transport: str, certificates: Certificates, lines: list[str], code: int
) -> None:
    async with connected(transport, certificates) as client:
        await hello(client)
        assert (await dialogue(client, *lines)).code == code
        assert await client.say("NOOP") == (250, ["2.0.0 OK"])
        assert (await client.say(f"AUTH PLAIN {PLAIN}")).code == 235


@pytest.mark.parametrize("initial", [True, False])
async def test_a_response_of_ten_thousand_bytes_is_accepted(
    transport: str, certificates: Certificates, initial: bool
) -> None:
    """Tokens of XOAUTH2 have this length; RFC 4954 4 requires 12288 bytes of base64."""
    token = b"t" * 8990
    response = b64(b"\0" + LOGIN + b"\0" + token)
    assert len(response) > 10_000
    seen: list[bytes] = []

    def remember(*args: Any) -> AuthResult:
        seen.append(args[-1].password)
        return AuthResult(success=True)

    async with connected(transport, certificates, authenticator=remember) as client:
        await hello(client)
        lines = [f"AUTH PLAIN {response}"] if initial else ["AUTH PLAIN", response]
        assert (await dialogue(client, *lines)).code == 235
    assert seen == [token]


@pytest.mark.parametrize("lines", [[f"AUTH PLAIN {WRONG}"], ["AUTH LOGIN", "*"], ["AUTH PLAIN x"]])
async def test_three_failed_attempts_end_the_session(
    transport: str, certificates: Certificates, lines: list[str]
) -> None:
    async with connected(transport, certificates) as client:
        await hello(client)
        for _ in range(3):
            assert (await dialogue(client, *lines)).code in {535, 501}
        assert (await client.reply()).code == 421
        assert await client.ended()


async def test_auth_within_a_transaction_is_503(transport: str, certificates: Certificates) -> None:
    async with connected(transport, certificates) as client:
        await hello(client)
        await client.say("MAIL FROM:<a@b.c>")
        assert (await client.say(f"AUTH PLAIN {PLAIN}")).code == 503
        await client.say("RSET")
        assert (await client.say(f"AUTH PLAIN {PLAIN}")).code == 235


async def test_auth_requires_ehlo(transport: str, certificates: Certificates) -> None:
    async with connected(transport, certificates) as client:
        assert (await client.say(f"AUTH PLAIN {PLAIN}")).code == 503
        await client.say("HELO x")
        assert (await client.say(f"AUTH PLAIN {PLAIN}")).code == 500


async def test_mail_is_530_before_auth_if_auth_is_required(
    transport: str, certificates: Certificates
) -> None:
    options = {"auth_required": True}
    async with connected(transport, certificates, session_options=options) as client:
        await hello(client)
        for command in ("MAIL FROM:<a@b.c>", "RCPT TO:<a@b.c>", "DATA", "VRFY a@b.c"):
            assert (await client.say(command)).code == 530
        assert (await client.say(f"AUTH PLAIN {PLAIN}")).code == 235
        assert (await client.deliver()).code == 250


@pytest.mark.parametrize(
    ("value", "code"), [("<>", 250), ("bob+40x.y", 250), ("bob@x.y", 250), ("+", 501), ("", 501)]
)
async def test_mail_names_the_submitter(
    transport: str, certificates: Certificates, value: str, code: int
) -> None:
    handler = Look()
    async with connected(transport, certificates, handler) as client:
        await hello(client)
        assert (await client.say(f"AUTH PLAIN {PLAIN}")).code == 235
        assert (await client.say(f"MAIL FROM:<a@b.c> AUTH={value}")).code == code
        if code == 250:
            await client.say("RCPT TO:<d@e.f>", "DATA")
            client.send("x\r\n.\r\n")
            assert (await client.reply()).code == 250
            assert handler.seen[0][2] == {"AUTH": value}


async def test_credentials_pipelined_behind_a_challenge_are_read_in_order(
    transport: str, certificates: Certificates
) -> None:
    async with connected(transport, certificates) as client:
        await hello(client)
        client.send(f"AUTH LOGIN\r\n{b64(LOGIN)}\r\n{b64(PASSWORD)}\r\nNOOP\r\n")
        assert [(await client.reply()).code for _ in range(4)] == [334, 334, 235, 250]


async def test_the_challenges_of_login_are_the_usual_ones(
    transport: str, certificates: Certificates
) -> None:
    async with connected(transport, certificates) as client:
        await hello(client)
        (name,) = (await client.say("AUTH LOGIN")).lines
        (password,) = (await client.say(b64(LOGIN))).lines
        assert (b64decode(name), b64decode(password)) == (b"Username:", b"Password:")
        await client.say("*")


async def test_a_client_that_disconnects_at_a_challenge_releases_its_slot(
    transport: str, certificates: Certificates
) -> None:
    async with connected(transport, certificates) as client:
        await hello(client)
        assert (await client.say("AUTH LOGIN")).code == 334
        client.reset()


async def test_a_client_that_does_not_answer_a_challenge_gets_421(
    transport: str, certificates: Certificates
) -> None:
    async with connected(transport, certificates, timeout=0.3) as client:
        await hello(client)
        assert (await client.say("AUTH LOGIN")).code == 334
        assert (await client.reply()).code == 421
        assert await client.ended()


async def test_a_stop_does_not_wait_for_the_answer_to_a_challenge(
    transport: str, certificates: Certificates
) -> None:
    server: list[Any] = []

    class Noting(Discard):
        async def handle_EHLO(
            self, its: Any, session: Any, envelope: Any, name: str, replies: list[str]
        ) -> list[str]:
            session.host_name = name
            server.append(its)
            return replies

    async with connected(transport, certificates, Noting()) as client:
        await hello(client)
        assert (await client.say("AUTH LOGIN")).code == 334
        server[-1].connection.shut_down()
        assert (await client.reply()).code == 421
        assert await client.ended()


async def test_credentials_are_in_no_log(
    transport: str, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with connected(transport, certificates) as client:
        await hello(client)
        await client.say(f"AUTH PLAIN {WRONG}")
        await dialogue(client, "AUTH LOGIN", b64(LOGIN), b64(PASSWORD))
    assert caplog.text.count(">> AUTH ...") >= 2
    for secret in (PLAIN, WRONG, PASSWORD.decode(), b64(PASSWORD), "wrong"):
        assert secret not in caplog.text.replace("is wrong", "")


@pytest.mark.parametrize("password", [PASSWORD, b"wrong"])
async def test_smtplib_authenticates(
    transport: str, certificates: Certificates, password: bytes
) -> None:
    def log_in(address: Any, tls: ssl.SSLContext) -> int:
        if transport == "smtps":
            client: smtplib.SMTP = smtplib.SMTP_SSL("localhost", address[1], context=tls)
        else:
            client = smtplib.SMTP("localhost", address[1])
        with client:
            if transport != "smtps":
                client.starttls(context=tls)
            try:
                return client.login(LOGIN.decode(), password.decode())[0]
            except smtplib.SMTPAuthenticationError as error:
                return error.smtp_code

    listen = ["smtps:127.0.0.1:0" if transport == "smtps" else "127.0.0.1:0"]
    options = {"authenticator": check}
    async with serve(
        Discard(), listen=listen, tls_context=certificates.server, session_options=options
    ) as server:
        code = await asyncio.to_thread(log_in, server.addresses[0], certificates.client)
    assert code == (235 if password == PASSWORD else 535)
