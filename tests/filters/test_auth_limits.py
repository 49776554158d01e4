"""The filter auth in sessions: limits of failures and of concurrent attempts."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from support.auth import RIGHT, connected, hello, plain, tls_client
from support.client import Client, code_and_enhanced
from support.handlers import Collect, a_session, an_envelope
from support.server import serve

from smtpd_fork.filters import Auth
from smtpd_fork.filters.auth import password_threads
from smtpd_fork.filters.auth.users_file import Users

if TYPE_CHECKING:
    import pytest
    from support.tls import Certificates


async def test_a_client_at_its_limit_is_refused_in_later_sessions(
    certificates: Certificates, users: str
) -> None:
    auth = Auth(users, max_failures=2)
    async with serve([auth, Collect()], tls_context=certificates.server) as server:
        for line, code in [(plain("bob", "1"), 535), (plain("bob", "2"), 535), (RIGHT, 421)]:
            async with await tls_client(server.addresses[0], certificates) as client:
                reply = await client.say(line)
                assert reply.code == code
                assert code != 421 or await client.ended()
        async with await tls_client(server.addresses[0], certificates, "127.0.0.2") as client:
            assert (await client.say(RIGHT)).code == 235


async def test_the_same_credentials_by_plain_and_login_count_once(
    certificates: Certificates, users: str
) -> None:
    auth = Auth(users, max_failures=2)
    async with serve([auth, Collect()], tls_context=certificates.server) as server:
        for _ in range(2):
            async with await tls_client(server.addresses[0], certificates) as client:
                assert (await client.say(plain("bob", "old"))).code == 535
                assert (await client.say("AUTH LOGIN Ym9i")).code == 334
                assert (await client.say("b2xk")).code == 535
        async with await tls_client(server.addresses[0], certificates) as client:
            assert (await client.say(plain("bob", "older"))).code == 535
        async with await tls_client(server.addresses[0], certificates) as client:
            assert (await client.say(RIGHT)).code == 421


async def test_a_client_at_its_limit_is_denied_by_the_gate_if_configured(
    certificates: Certificates, users: str
) -> None:
    auth = Auth(users, max_failures=1, deny=60.0)
    async with serve([auth, Collect()], tls_context=certificates.server) as server:
        async with await tls_client(server.addresses[0], certificates) as client:
            assert (await client.say(plain("bob", "wrong"))).code == 535
        async with await Client.to(server.addresses[0]) as client:
            banner = await client.reply()
            assert banner.code == 554
            assert "Too many failed attempts to authenticate" in banner.text
        assert server.undeny("127.0.0.1")


async def test_a_host_that_sends_xclient_is_not_denied(
    certificates: Certificates, users: str
) -> None:
    auth = Auth(users, max_failures=1, deny=60.0, require_tls="never")
    async with serve([auth, Collect()], xclient_trust=["127.0.0.1"]) as server:
        for words, denied in ((None, []), ("ADDR=198.51.100.7", ["198.51.100.7"])):
            async with await Client.to(server.addresses[0]) as client:
                await client.greet()
                if words:
                    await client.say(f"XCLIENT {words}")
                    await client.say("EHLO x")
                assert (await client.say(plain("bob", "wrong"))).code == 535
            found = [denial.written for denial, _ in server.gate.denials.page()]
            assert found == denied


async def test_a_user_at_the_limit_gets_454_from_unknown_clients(
    certificates: Certificates, users: str
) -> None:
    auth = Auth(users, max_user_failures=2)
    async with connected("starttls", certificates, [auth], authenticator=None) as client:
        await hello(client)
        for word in ("1", "2"):
            assert (await client.say(plain("bob", word))).code == 535
        assert code_and_enhanced(await client.say(RIGHT)) == (454, "4.7.0")


async def test_attempts_wait_for_a_thread_and_get_454_when_too_many_wait(
    certificates: Certificates, users: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(password_threads, "MOST_WAITING", 0)
    held, go = threading.Semaphore(0), threading.Event()

    def verify(self: Users, user: str, password: bytes) -> bool:
        held.release()
        return go.wait(20)

    monkeypatch.setattr(Users, "verify", verify)
    monkeypatch.setattr(password_threads, "THREADS", 2)
    async with serve([Auth(users), Collect()], tls_context=certificates.server) as server:
        # The attempts of one client would wait for each other.
        hosts = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
        address = server.addresses[0]
        clients = [await tls_client(address, certificates, host) for host in hosts]
        for client in clients[:2]:
            client.send(f"{RIGHT}\r\n")
            await asyncio.to_thread(held.acquire)
        assert code_and_enhanced(await clients[2].say(RIGHT)) == (454, "4.7.0")
        # The threads of other handlers are free.
        assert await asyncio.to_thread(lambda: True)
        clients[0].reset()
        go.set()
        assert (await clients[1].reply()).code == 235
        for client in clients:
            await client.close()
        for _ in range(3):  # all threads are free again
            async with await tls_client(address, certificates) as client:
                assert (await client.say(RIGHT)).code == 235


async def test_one_network_cannot_fill_the_queue_of_attempts(
    certificates: Certificates, users: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(password_threads, "MOST_OF_NETWORK", 2)
    held, go = threading.Semaphore(0), threading.Event()

    def verify(self: Users, user: str, password: bytes) -> bool:
        held.release()
        return go.wait(20)

    monkeypatch.setattr(Users, "verify", verify)
    async with serve([Auth(users), Collect()], tls_context=certificates.server) as server:
        hosts = ["127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.1.2"]
        clients = [await tls_client(server.addresses[0], certificates, host) for host in hosts]
        for client in clients[:2]:
            client.send(f"{RIGHT}\r\n")
            await asyncio.to_thread(held.acquire)
        assert code_and_enhanced(await clients[2].say(RIGHT)) == (454, "4.7.0")
        clients[3].send(f"{RIGHT}\r\n")
        clients[0].reset()
        go.set()
        for client in (clients[1], clients[3]):
            assert (await client.reply()).code == 235
        for client in clients:
            await client.close()
        async with await tls_client(server.addresses[0], certificates, hosts[2]) as client:
            assert (await client.say(RIGHT)).code == 235


async def test_an_exempt_client_has_no_limit_of_failures(
    certificates: Certificates, users: str
) -> None:
    options: dict[str, Any] = {"tls_context": certificates.server, "exempt": ["127.0.0.1"]}
    async with serve([Auth(users, max_failures=1, deny=60.0), Collect()], **options) as server:
        for word in ("1", "2"):
            async with await tls_client(server.addresses[0], certificates) as client:
                assert (await client.say(plain("bob", word))).code == 535
        assert len(server.gate.denials) == 0


async def test_a_client_of_ipv6_is_counted_by_its_network(
    certificates: Certificates, users: str
) -> None:
    auth = Auth(users, max_failures=1)
    for host, code in (("2001:db8::1", 535), ("2001:db8::2", 421), ("2001:db8:0:1::1", 535)):
        result = await auth.auth_PLAIN(server_of(host), ["PLAIN", plain("bob", host).split()[2]])  # type: ignore[attr-defined]  # made by the constructor
        assert str(result.message)[:3] == str(code)
    await auth.close()


def server_of(host: str) -> Any:
    """Return the parts of a session that the handler needs."""
    session = a_session(peer=(host, 4025), ssl={})
    return SimpleNamespace(session=session, envelope=an_envelope(None))
