"""The filter auth in sessions, with a file of users."""

from __future__ import annotations

import asyncio
import logging
import smtplib
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.controller import Controller
from blockbuster import blockbuster_ctx
from support.auth import HASH, PASSWORD, RIGHT, b64, connected, dialogue, hello, plain, tls_client
from support.client import Client, code_and_enhanced
from support.handlers import Collect
from support.ports import free_port
from support.server import serve

from smtpd_fork.errors import HandlerError
from smtpd_fork.filters import Accept, Auth
from smtpd_fork.handlers import Chain
from smtpd_fork.handlers.route import Route
from smtpd_fork.handlers.when import When
from smtpd_fork.sinks import Relay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.tls import Certificates

WORD = PASSWORD.decode()


@asynccontextmanager
async def door(
    certificates: Certificates, *handlers: Any, **options: Any
) -> AsyncIterator[tuple[Client, Collect]]:
    """Serve, and yield a client with TLS."""
    kept = Collect()
    chain = [*handlers, kept]
    async with connected("starttls", certificates, chain, authenticator=None, **options) as client:
        yield client, kept


@pytest.mark.parametrize("transport", ["starttls", "smtps"])
async def test_a_user_of_the_file_can_authenticate_by_plain_and_login(
    transport: str, certificates: Certificates, users: str
) -> None:
    for lines in (
        [RIGHT],
        ["AUTH PLAIN", RIGHT.split()[2]],
        ["AUTH LOGIN", b64("bob"), b64(PASSWORD)],
        [f"AUTH LOGIN {b64('BOB')}", b64(PASSWORD)],
        [plain("carol@example.com", PASSWORD, "Carol@example.com")],
    ):
        handlers = [Auth(users), Collect()]
        async with connected(transport, certificates, handlers, authenticator=None) as client:
            assert await hello(client) == ["PLAIN", "LOGIN"]
            assert code_and_enhanced(await dialogue(client, *lines)) == (235, "2.7.0")


@pytest.mark.parametrize(
    ("lines", "answer"),
    [
        ([plain("bob", "wrong")], (535, "5.7.8")),
        ([plain("nobody", PASSWORD)], (535, "5.7.8")),
        ([plain("bob", "")], (535, "5.7.8")),
        ([plain("", "")], (535, "5.7.8")),
        ([plain("bob", PASSWORD, "carol@example.com")], (535, "5.7.8")),
        ([f"AUTH PLAIN {b64('bob')}"], (535, "5.7.8")),
        ([f"AUTH PLAIN {b64(b'a' + bytes(5))}"], (535, "5.7.8")),
        ([f"AUTH PLAIN {b64(bytes([0, 0xFF, 0]) + b'x')}"], (535, "5.7.8")),
        (["AUTH PLAIN ="], (535, "5.7.8")),
        (["AUTH PLAIN ä"], (501, "5.5.2")),
        (["AUTH PLAIN !"], (501, "5.5.2")),
        (["AUTH PLAIN", "*"], (501, "5.7.0")),
        (["AUTH LOGIN", b64("bob"), "*"], (501, "5.7.0")),
        (["AUTH LOGIN", b64(b"\xff"), b64("x")], (535, "5.7.8")),
        (["AUTH LOGIN", b64("bob\r\nMAIL FROM:<>"), b64("x")], (535, "5.7.8")),
        ([plain("x" * 6000, "y" * 2000)], (535, "5.7.8")),
        (["AUTH CRAM-MD5"], (504, "5.5.4")),
    ],
)
async def test_wrong_credentials_are_refused(
    lines: list[str], answer: tuple[int, str], certificates: Certificates, users: str
) -> None:
    async with door(certificates, Auth(users)) as (client, _):
        await hello(client)
        assert code_and_enhanced(await dialogue(client, *lines)) == answer
        assert code_and_enhanced(await client.say(RIGHT)) == (235, "2.7.0")


async def test_an_authenticated_client_may_relay_and_the_message_has_its_user_name(
    certificates: Certificates, users: str
) -> None:
    async with door(certificates, Auth(users), Accept(["example.com"])) as (client, kept):
        await hello(client)
        away = ["MAIL FROM:<bob@example.com>", "RCPT TO:<x@example.net>"]
        assert (await client.say(*away)).code == 550
        assert (await client.say("RSET", RIGHT)).code == 235
        assert (await client.say(*away)).code == 250
        reply = await client.say("DATA")
        client.send("Subject: x\r\n\r\nx\r\n.\r\n")
        assert (reply.code, (await client.reply()).code) == (354, 250)
    assert len(kept.messages) == 1


async def test_the_log_has_the_user_but_no_secret(
    certificates: Certificates, users: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with door(certificates, Auth(users)) as (client, _):
        await hello(client)
        assert (await client.say(plain("bob\x1b\n" + "x" * 300, "hidden word"))).code == 535
        assert (await client.say(RIGHT)).code == 235
    lines = [each.getMessage() for each in caplog.records]
    (refused,) = [line for line in lines if line.startswith("rejected AUTH") and "535" in line]
    assert r"user=<bob\x1b\n" in refused
    assert len(refused) < 400
    assert any(line.endswith("authenticated: user=bob mechanism=PLAIN") for line in lines)
    everything = "\n".join(lines)
    for secret in (WORD, "hidden word", RIGHT.split()[2], HASH):
        assert secret not in everything


async def test_the_loop_is_not_blocked_by_hashes(certificates: Certificates, users: str) -> None:
    async with door(certificates, Auth(users)) as (client, _):
        await hello(client)
        with blockbuster_ctx():
            assert (await client.say(RIGHT)).code == 235


async def test_a_reload_reads_the_file_again(
    certificates: Certificates, users: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve([Auth(users), Collect()], tls_context=certificates.server) as server:
        async with await tls_client(server.addresses[0], certificates) as client:
            assert (await client.say(plain("dave", PASSWORD))).code == 535
            Path(users).write_text(f"dave:{HASH}\nbroken\n")
            changes = await server.reload()
            assert changes == [f"handler auth: {users} read: users=1"]
            assert f"{users}, line 2: expected USER:HASH" in caplog.text
            assert (await client.say(plain("bob", PASSWORD))).code == 535
            assert (await client.say(plain("dave", PASSWORD))).code == 235


async def test_a_handler_can_be_used_again_after_its_server_has_stopped(
    certificates: Certificates, users: str
) -> None:
    auth = Auth(users)
    for _ in range(2):
        async with door(certificates, auth) as (client, _):
            await hello(client)
            assert (await client.say(RIGHT)).code == 235


async def test_with_required_an_unauthenticated_client_gets_530(
    certificates: Certificates, users: str
) -> None:
    async with door(certificates, Auth(users, required=True)) as (client, _):
        await hello(client)
        mail = "MAIL FROM:<bob@example.com>"
        assert code_and_enhanced(await client.say(mail)) == (530, "5.7.0")
        assert (await client.say(RIGHT)).code == 235
        assert (await client.say(mail)).code == 250


async def test_with_required_only_authenticated_clients_may_relay(users: str) -> None:
    relay = Relay("127.0.0.1:1")
    assert Chain([Auth(users), relay]).is_open_relay
    assert not Chain([Auth(users, required=True), relay]).is_open_relay


async def test_with_when_auth_is_offered_only_to_matching_clients(
    certificates: Certificates, users: str
) -> None:
    route = Route(Auth(users), when=When.of({"client": ["127.0.0.2"]}))
    async with serve([route, Collect()], tls_context=certificates.server) as server:
        for source, offered, code in (
            ("127.0.0.1", [], 504),
            ("127.0.0.2", ["PLAIN", "LOGIN"], 235),
        ):
            async with await tls_client(server.addresses[0], certificates, source) as client:
                assert await hello(client) == offered
                assert (await client.say(RIGHT)).code == code
                assert (await client.say("MAIL FROM:<a@example.com>")).code == 250


async def test_the_first_auth_handler_with_a_matching_condition_decides(
    certificates: Certificates, users: str, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_text(f"dave:{HASH}\n")
    chain = [
        Route(Auth(str(other)), when=When.of({"client": ["127.0.0.2"]})),
        Auth(users),
        Collect(),
    ]
    async with serve(chain, tls_context=certificates.server) as server:
        for source, user in (("127.0.0.1", "bob"), ("127.0.0.2", "dave")):
            async with await tls_client(server.addresses[0], certificates, source) as client:
                assert await hello(client) == ["PLAIN", "LOGIN"]
                wrong = "dave" if user == "bob" else "bob"
                assert (await client.say(plain(wrong, PASSWORD))).code == 535
                assert (await client.say(plain(user, PASSWORD))).code == 235


@pytest.mark.parametrize(
    ("require", "offered"), [("always", []), ("plaintext", []), ("never", ["PLAIN", "LOGIN"])]
)
async def test_without_tls_a_password_is_accepted_only_if_configured(
    require: Any, offered: list[str], users: str
) -> None:
    async with serve([Auth(users, require_tls=require), Collect()]) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.reply()
            lines = [line for line in (await client.say("EHLO x")).lines if line[:4] == "AUTH"]
            expected = (235, "2.7.0") if offered else (538, "5.7.11")
            assert code_and_enhanced(await client.say(RIGHT)) == expected
            if require != "plaintext":
                assert lines == [f"AUTH {' '.join(offered)}"] * bool(offered)


# -- bad settings ----------------------------------------------------------------------------------


def test_exactly_one_backend_has_to_be_configured(users: str) -> None:
    for keys in ({}, {"users": users, "dovecot": "unix:/run/x"}):
        with pytest.raises(HandlerError, match="exactly one of users, dovecot and authenticator"):
            Auth(**keys)  # type: ignore[arg-type]  # only the number of arguments matters


def test_check_reports_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(HandlerError, match=r"cannot read .*none: No such file"):
        Auth(str(tmp_path / "none")).check()


# -- under aiosmtpd --------------------------------------------------------------------------------


def test_it_runs_under_aiosmtpd(users: str, certificates: Certificates) -> None:
    chain = Chain([Auth(users), Collect()])
    port = free_port("127.0.0.1")
    controller = Controller(chain, "127.0.0.1", port, tls_context=certificates.server)
    controller.start()
    try:
        with smtplib.SMTP("127.0.0.1", port) as client:
            client._host = "localhost"  # type: ignore[attr-defined]  # set from the certificate
            client.starttls(context=certificates.client)
            client.ehlo()
            assert set(client.esmtp_features["auth"].split()) == {"PLAIN", "LOGIN"}
            with pytest.raises(smtplib.SMTPAuthenticationError) as caught:
                client.login("bob", "wrong")
            assert caught.value.smtp_code == 535
            assert client.login("bob", WORD)[0] == 235
    finally:
        controller.stop()
        asyncio.run(chain.close())
