"""The filter auth with Dovecot's service: slow, restarted, hanging, and with protocol errors."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from support.auth import b64, connected, dialogue, hello, tls_client
from support.client import Client, code_and_enhanced
from support.dovecot_auth import OPENING, AuthService, challenge
from support.handlers import Collect
from support.scripted_server import listening
from support.server import serve, until

from smtpd_fork.filters import Auth
from smtpd_fork.filters.auth import dovecot_backend
from smtpd_fork.hops.dovecot import connection as dovecot_connection
from smtpd_fork.hops.dovecot import service as dovecot_service
from smtpd_fork.setting_types import SettingError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.tls import Certificates

RIGHT = f"AUTH PLAIN {b64(f'{chr(0)}bob{chr(0)}secret')}"
WRONG = f"AUTH PLAIN {b64(f'{chr(0)}bob{chr(0)}wrong')}"
DOWN = (454, "4.7.0")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try an unreachable service again without a pause."""
    monkeypatch.setattr(dovecot_service, "RETRY_SECONDS", 0.0)


@asynccontextmanager
async def door(
    service: AuthService, certificates: Certificates, **keys: Any
) -> AsyncIterator[Client]:
    """Serve with the service; yield a client with TLS. At the end check that nothing is left."""
    async with listening(service, tcp=keys.pop("tcp", False)):
        auth = Auth(dovecot=service.address, **keys)
        chain = [auth, Collect()]
        async with connected("starttls", certificates, chain, authenticator=None) as client:
            yield client
        assert auth._failures._running == {}


@pytest.mark.parametrize("tcp", [False, True])
async def test_the_service_decides_and_gets_the_parameters_of_the_client(
    tcp: bool, certificates: Certificates
) -> None:
    service = AuthService()
    async with door(service, certificates, tcp=tcp) as client:
        assert await hello(client) == ["PLAIN", "LOGIN", "CRAM-MD5"]
        assert code_and_enhanced(await client.say(WRONG)) == (535, "5.7.8")
        assert code_and_enhanced(await client.say(RIGHT)) == (235, "2.7.0")
        (_, second) = service.requests("AUTH")
        assert second[2:5] == ["PLAIN", "service=smtp", "nologin"]
        assert {"lip=127.0.0.1", "rip=127.0.0.1", "secured=tls"} < set(second)
        assert second[-1] == f"resp={RIGHT.split()[2]}"
        assert service.requests("VERSION") == [["VERSION", "1", "2"]]
    assert service.connections == 1


async def test_a_mechanism_with_several_steps_works(certificates: Certificates) -> None:
    service = AuthService(
        answers={"AUTH CRAM-MD5": challenge(b"<1@mx>"), "CONT": "OK\t{id}\tuser=carol\n"}
    )
    async with door(service, certificates) as client:
        await hello(client)
        reply = await client.say("AUTH CRAM-MD5")
        assert (reply.code, reply.text) == (334, b64(b"<1@mx>"))
        assert (await client.say(b64("carol 0123"))).code == 235
        assert service.requests("AUTH")[0][-1] == "secured=tls"
        assert service.requests("CONT") == [["CONT", "1", b64("carol 0123")]]


async def test_the_request_of_a_client_that_cancels_is_cancelled(
    certificates: Certificates,
) -> None:
    service = AuthService(answers={"AUTH CRAM-MD5": challenge(b"x")})
    async with door(service, certificates) as client:
        await hello(client)
        assert code_and_enhanced(await dialogue(client, "AUTH CRAM-MD5", "*")) == (501, "5.7.0")
        await until(lambda: service.requests("CANCEL") == [["CANCEL", "1"]])
        assert (await client.say("AUTH CRAM-MD5")).code == 334
        client.reset()
        await until(lambda: service.requests("CANCEL")[1:] == [["CANCEL", "2"]])


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ("FAIL\t{id}\tuser=bob", (535, "5.7.8")),
        ("FAIL\t{id}", (535, "5.7.8")),
        ("FAIL\t{id}\tuser=bob\ttemp", DOWN),
        ("FAIL\t{id}\tuser=bob\tcode=temp_fail\treason=LDAP is away", DOWN),
        ("FAIL\t{id}\tuser=bob\tauthz", (535, "5.7.1")),
        ("FAIL\t{id}\tuser=bob\tuser_disabled", (535, "5.7.1")),
        ("FAIL\t{id}\tuser=bob\tcode=pass_expired", (535, "5.7.1")),
        ("OK\t{id}", DOWN),
        ("OK\t{id}\tuser=", DOWN),
        ("OK\t{id}\tuser=a\x01nb", DOWN),
        ("OK\t{id}\tuser=" + "x" * 300, DOWN),
        ("FAIL\t999\nOK\t{id}\tuser=bob", (235, "2.7.0")),
        ("NOISE\tx\nOK\t{id}\tuser=bob", (235, "2.7.0")),
    ],
)
async def test_each_answer_has_its_reply(
    answer: str, reply: tuple[int, str], certificates: Certificates
) -> None:
    service = AuthService(answers={"AUTH PLAIN": f"{answer}\n"})
    async with door(service, certificates) as client:
        await hello(client)
        assert code_and_enhanced(await client.say(RIGHT)) == reply
    assert service.connections == 1


@pytest.mark.parametrize(
    "said",
    [
        "OK\tx\n",
        "CONT\t{id}\tnot base64\n",
        "CONT\t{id}\t" + b64("x" * 9300) + "\n",
        "x" * 70_000,
        "x\n" * 1001,
    ],
)
async def test_a_protocol_error_gets_454_and_the_next_attempt_uses_a_new_connection(
    said: str, certificates: Certificates
) -> None:
    service = AuthService(answers={"AUTH PLAIN": said})
    async with door(service, certificates) as client:
        await hello(client)
        assert code_and_enhanced(await client.say(RIGHT)) == DOWN
        service.answers.clear()
        assert (await client.say(RIGHT)).code == 235
    # A lost connection may be a restart of Dovecot, so the request is repeated once before 454.
    assert service.connections == 3


@pytest.mark.parametrize(
    "opening", ["", "220 mx ESMTP\r\n", "VERSION\t1\t2\n", "x" * 70_000, "SPID\t1\n" * 2000]
)
async def test_a_server_with_another_protocol_gets_454(
    opening: str, certificates: Certificates
) -> None:
    service = AuthService(opening=opening)
    async with door(service, certificates, connect_timeout=0.1) as client:
        assert await hello(client) == ["PLAIN", "LOGIN"]
        assert code_and_enhanced(await client.say(RIGHT)) == DOWN


async def test_ehlo_waits_only_shortly_for_a_service_that_sends_nothing(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dovecot_backend, "OFFER_SECONDS", 0.05)
    service = AuthService(opening="")
    async with door(service, certificates, connect_timeout=1000.0) as client:
        assert await hello(client) == ["PLAIN", "LOGIN"]
        service.hang_up()
        service.opening = OPENING
        assert code_and_enhanced(await client.say(RIGHT)) in {DOWN, (235, "2.7.0")}
        assert (await client.say(RIGHT)).code in {235, 503}


async def test_a_service_without_answers_gets_454_and_its_connection_is_closed(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    service = AuthService(answers={"AUTH PLAIN": None})
    async with listening(service):
        auth = Auth(dovecot=service.address, timeout=0.1)
        chain = [auth, Collect()]
        async with connected("starttls", certificates, chain, authenticator=None) as client:
            await hello(client)
            assert code_and_enhanced(await client.say(RIGHT)) == DOWN
            assert auth.status is not None
            assert (auth.status.connections, auth.status.reason) == (0, "no answer within 0.1 s")
            await until(lambda: service.open == 0)
            service.answers.clear()
            assert (await client.say(RIGHT)).code == 235
            assert (auth.status.connections, auth.status.down_since) == (1, None)
    lines = [each.getMessage() for each in caplog.records if each.name == "smtpd_fork.auth"]
    assert f"Dovecot {service.address} is down: no answer within 0.1 s" in lines
    assert any(line.startswith(f"Dovecot {service.address} is up again, after ") for line in lines)


async def test_a_request_that_hangs_while_others_are_answered_does_not_end_the_connection(
    certificates: Certificates,
) -> None:
    service = AuthService(answers={"AUTH CRAM-MD5": None})
    async with listening(service):
        auth = Auth(dovecot=service.address, timeout=0.5)
        async with (
            serve([auth, Collect()], tls_context=certificates.server) as server,
            await Client.to(server.addresses[0]) as one,
            await Client.to(server.addresses[0]) as other,
        ):
            for client in (one, other):
                await client.greet()
                await client.start_tls(certificates.client)
                await hello(client)
            one.send("AUTH CRAM-MD5\r\n")
            await until(lambda: service.requests("AUTH"))
            assert (await other.say(RIGHT)).code == 235
            assert code_and_enhanced(await one.reply()) == DOWN
            await until(lambda: service.requests("CANCEL"))
    assert service.connections == 1


async def test_too_many_concurrent_requests_get_454_and_are_no_outage(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dovecot_connection, "MOST_REQUESTS", 1)
    service = AuthService(answers={"AUTH CRAM-MD5": None})
    async with listening(service):
        auth = Auth(dovecot=service.address)
        async with serve([auth, Collect()], tls_context=certificates.server) as server:
            one = await tls_client(server.addresses[0], certificates)
            other = await tls_client(server.addresses[0], certificates)
            one.send("AUTH CRAM-MD5\r\n")
            await until(lambda: service.requests("AUTH"))
            assert code_and_enhanced(await other.say(RIGHT)) == DOWN
            assert auth.status is not None
            assert (auth.status.down_since, auth.status.busy) == (None, 1)
            one.reset()
            await until(lambda: service.requests("CANCEL") == [["CANCEL", "1"]])
            assert (await other.say(RIGHT)).code == 235
            await other.close()


async def test_a_restarted_service_is_used_again_with_its_new_mechanisms(
    certificates: Certificates,
) -> None:
    service = AuthService()
    async with door(service, certificates) as client:
        assert await hello(client) == ["PLAIN", "LOGIN", "CRAM-MD5"]
        service.hang_up()
        service.opening = OPENING.replace("CRAM-MD5", "SCRAM-SHA-256")
        await until(lambda: service.open == 0)
        assert (await client.say("AUTH CRAM-MD5")).code == 504
        assert await hello(client) == ["PLAIN", "LOGIN", "SCRAM-SHA-256"]
        assert (await client.say(RIGHT)).code == 235
    assert service.connections == 2


async def test_a_request_is_repeated_once_if_the_connection_is_lost_before_an_answer(
    certificates: Certificates,
) -> None:
    service = AuthService()
    lost = 0

    async def lose_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal lost
        service.talk = None
        writer.write(OPENING.encode())
        while not (await reader.readline()).startswith(b"AUTH"):
            pass
        lost += 1

    service.talk = lose_first
    async with door(service, certificates) as client:
        await hello(client)
        assert (await client.say(RIGHT)).code == 235
    assert (lost, service.connections) == (1, 2)


async def test_a_connection_lost_in_the_middle_of_an_exchange_gets_454(
    certificates: Certificates,
) -> None:
    service = AuthService(answers={"AUTH CRAM-MD5": challenge(b"x")})
    async with door(service, certificates) as client:
        await hello(client)
        assert (await client.say("AUTH CRAM-MD5")).code == 334
        service.hang_up()
        assert code_and_enhanced(await client.say(b64("bob 0"))) == DOWN
        assert (await client.say(RIGHT)).code == 235


async def test_a_response_longer_than_dovecots_limit_is_not_sent_to_dovecot(
    certificates: Certificates,
) -> None:
    service = AuthService(answers={"AUTH CRAM-MD5": challenge(b"x")})
    async with door(service, certificates) as client:
        await hello(client)
        long = b64("x" * 7000)
        assert code_and_enhanced(await client.say(f"AUTH PLAIN {long}")) == (500, "5.5.6")
        reply = await dialogue(client, "AUTH CRAM-MD5", long)
        assert code_and_enhanced(reply) == (500, "5.5.6")
        assert (await client.say(RIGHT)).code == 235
    assert service.connections == 1


async def test_an_old_connection_gets_no_new_request_but_finishes_its_current_one(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a reload Dovecot's old process serves existing connections with the old settings."""
    monkeypatch.setattr(dovecot_service, "FRESH_SECONDS", 0.3)
    service = AuthService(
        answers={"AUTH CRAM-MD5": challenge(b"x"), "CONT": "OK\t{id}\tuser=bob\n"}
    )
    async with door(service, certificates) as client:
        await hello(client)
        await until(lambda: service.open == 0)
        assert (await client.say(WRONG)).code == 535
        assert (await client.say("AUTH CRAM-MD5")).code == 334
        before = service.connections
        assert service.open == 1
        assert (await client.say(b64("bob 0"))).code == 235
        await until(lambda: service.open == 0)
    assert service.connections == before


async def test_many_sessions_share_one_connection(certificates: Certificates) -> None:
    service = AuthService()
    async with listening(service):
        auth = Auth(dovecot=service.address)
        async with serve([auth, Collect()], tls_context=certificates.server) as server:

            async def one(line: str) -> int:
                async with await Client.to(server.addresses[0]) as client:
                    await client.greet()
                    await client.start_tls(certificates.client)
                    await hello(client)
                    return (await client.say(line)).code

            codes = await asyncio.gather(*(one((RIGHT, WRONG)[n % 2]) for n in range(20)))
    assert codes == [235, 535] * 10
    assert service.connections == 1


async def test_wrong_credentials_count_as_failures_and_temporary_errors_do_not(
    certificates: Certificates,
) -> None:
    service = AuthService(answers={"AUTH LOGIN": "FAIL\t{id}\ttemp\n"})
    async with door(service, certificates, max_failures=1) as client:
        await hello(client)
        assert (await client.say("AUTH LOGIN")).code == 454
        assert (await client.say(WRONG)).code == 535
        assert (await client.say(RIGHT)).code == 421


@pytest.mark.parametrize(
    ("require", "offered"),
    [("plaintext", ["CRAM-MD5"]), ("never", ["PLAIN", "LOGIN", "CRAM-MD5"])],
)
async def test_without_tls_mechanisms_that_hide_the_password_are_offered_if_configured(
    require: Any, offered: list[str]
) -> None:
    service = AuthService(
        answers={"AUTH CRAM-MD5": challenge(b"x"), "CONT": "OK\t{id}\tuser=bob\n"}
    )
    async with listening(service):
        auth = Auth(dovecot=service.address, require_tls=require)
        async with serve([auth, Collect()]) as server:
            async with await Client.to(server.addresses[0]) as client:
                await client.reply()
                assert await hello(client) == offered
                if require == "plaintext":
                    assert code_and_enhanced(await client.say(RIGHT)) == (538, "5.7.11")
                assert (await dialogue(client, "AUTH CRAM-MD5", b64("bob 0"))).code == 235
                assert not any(word.startswith("secured") for word in service.requests("AUTH")[0])


@pytest.mark.parametrize("address", ["127.0.0.1", "mx:example.com", "", "smtp:127.0.0.1:25"])
def test_an_invalid_address_is_an_error(address: str) -> None:
    with pytest.raises(SettingError, match="write unix:PATH or HOST:PORT"):
        Auth(dovecot=address)
