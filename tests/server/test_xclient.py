"""XCLIENT: a trusted host names its clients; each is evaluated as if it had connected itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import MISSING
from support.client import Client
from support.handlers import Collect
from support.nameserver import name_server
from support.server import greeted, running, serve, until
from support.xclient import TRUST, Looks, named, proxy_to

from smtpd_fork import Config, Route
from smtpd_fork.filters import Accept, Filter
from smtpd_fork.filters.milter_steps import client_step
from smtpd_fork.filters.policy_request import attributes
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from support.tls import Certificates
OTHER = "127.0.0.9"
"""Address of a host that is not trusted."""


async def test_the_session_continues_as_that_of_the_named_client() -> None:
    looks = Looks()
    async with serve(looks, **TRUST) as server, await Client.to(server.addresses[0]) as client:
        assert "XCLIENT NAME ADDR PORT" in (await client.greet()).text
        assert (await named(client, "ADDR=198.51.100.7 PORT=40312 NAME=a.example"))[:3] == "220"
        await client.say("EHLO named.example")
        assert (await client.deliver()).code == 250
        (entry,) = server.gate.ledger()
        assert (entry.peer, entry.key) == (("198.51.100.7", 40312), "198.51.100.7")
        assert str(entry.sender).startswith("('127.0.0.1', ")
        assert server.gate.clients == {"198.51.100.7": 1}
    assert looks.seen == [(("198.51.100.7", 40312), "a.example", "named.example")]


async def test_an_untrusted_host_must_not_name_a_client() -> None:
    async with serve(Discard(), **TRUST) as server:
        async with await Client.to(server.addresses[0], source=OTHER) as client:
            assert "XCLIENT" not in (await client.greet()).text
            assert (await named(client, "ADDR=198.51.100.7"))[:9] == "550 5.7.0"
            assert server.gate.clients == {OTHER: 1}


async def test_the_clients_of_a_unix_socket_are_trusted_by_name(tmp_path: Any) -> None:
    for trust, code in ({"xclient_trust": "unix"}, "220"), (TRUST, "550"):
        listen = [f"unix:{tmp_path}/s"]
        async with serve(Discard(), listen=listen, **trust) as server:
            async with await Client.to(server.addresses[0]) as client:
                await client.greet()
                assert (await named(client, "ADDR=198.51.100.7"))[:3] == code


# -- the DNS -----------------------------------------------------------------------------------


async def test_the_dns_is_queried_about_the_client_and_not_its_proxy() -> None:
    looks = Looks()
    async with name_server() as names:
        names.records["5.0.0.127.a.example", "A"] = "127.0.0.2"
        names.records["7.100.51.198.a.example", "A"] = "127.0.0.2"
        names.records["8.100.51.198.in-addr.arpa", "PTR"] = "host.example."
        names.records["host.example", "A"] = "198.51.100.8"
        options = {"dnsbl": ["a.example"], "rdns": True, "dns_server": names.address}
        trust = {"xclient_trust": ["127.0.0.5"]}
        async with serve(looks, dns_timeout=5, **options, **trust) as server:
            client, reply = await proxy_to(server, "ADDR=198.51.100.7", source="127.0.0.5")
            assert reply.startswith("554 5.7.1 mx.example.com Access denied, 198.51.100.7 is")
            assert await client.ended()
            await client.close()
            client, reply = await proxy_to(server, "ADDR=198.51.100.8", source="127.0.0.5")
            async with client:
                for words in ("", "ADDR=198.51.100.8 NAME=b.example", "ADDR=198.51.100.9"):
                    if words:
                        assert (await named(client, words))[:3] == "220"
                    await client.say("EHLO x")
                    await client.deliver()
    assert [name for _, name, _ in looks.seen] == ["host.example", "b.example", None]


async def test_a_client_that_disconnects_during_dns_queries_leaves_nothing_behind() -> None:
    async with name_server() as names:
        names.records["7.100.51.198.a.example", "A"] = None
        options = {"dnsbl": ["a.example"], "dns_server": names.address, "dns_timeout": 30}
        async with serve(Discard(), **options, **TRUST) as server:
            client = await Client.to(server.addresses[0])
            await client.greet()
            client.send("XCLIENT ADDR=198.51.100.7\r\n")
            await until(lambda: server.gate.clients == {"198.51.100.7": 1})
            client.reset()
            await client.close()
            await until(lambda: server.gate.count == 0)


async def test_the_progress_of_the_previous_client_does_not_count() -> None:
    async with serve(Discard(), **TRUST) as server:
        client, _ = await proxy_to(server, "ADDR=198.51.100.7")
        async with client:
            await client.say("EHLO x")
            await client.deliver()
            ((connection, _),) = running(server).sessions.all()
            connection.stuck_since()
            connection.stuck_at -= 100
            assert (await named(client, "ADDR=198.51.100.8"))[:3] == "220"
            assert connection.stuck_since() == connection.idle_since


@pytest.mark.parametrize("starttls", [False, True])
async def test_a_client_without_an_address_is_not_local(
    starttls: bool, certificates: Certificates
) -> None:
    seen: list[Any] = []

    class Asks(Filter):
        async def handle_MAIL(self, server: Any, session: Any, envelope: Any, *_: Any) -> Any:
            request = attributes(server, session, envelope, "MAIL", sender="a@b.example")
            seen.append((request["client_address"], request["client_name"]))
            seen.append(client_step(server, session, "mx").data)
            return MISSING

    kept = Collect()
    async with serve([Asks(), kept], tls_context=certificates.server, **TRUST) as server:
        client, _ = await proxy_to(server, "ADDR=[UNAVAILABLE]")
        async with client:
            if starttls:
                await client.say("EHLO x")
                await client.start_tls(certificates.client)
            await client.say("EHLO x", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA")
            client.send("Authentication-Results: mx.example.com; dkim=pass\r\n\r\nx\r\n.\r\n")
            assert (await client.reply()).code == 250
    assert seen == [("unknown", "unknown"), b"unknown\0U"]
    assert kept.messages == [b"\r\nx\r\n"]


# -- handlers, TLS and the rest ----------------------------------------------------------------


async def test_handlers_see_a_disconnect_and_a_connect() -> None:
    calls: list[tuple[str, Any]] = []

    class Visits(Discard):
        async def handle_CONNECT(self, server: Any, session: Any) -> Any:
            session.notes["n"] = len(calls)
            calls.append(("connect", session.peer[0]))
            return "554 5.7.1 Not you" if session.peer[0] == "198.51.100.9" else MISSING

        async def handle_DISCONNECT(self, server: Any, session: Any) -> None:
            await asyncio.sleep(0)
            calls.append(("disconnect", session.peer[0]))

    async with serve(Visits(), **TRUST) as server:
        client, reply = await proxy_to(server, "ADDR=198.51.100.7")
        async with client:
            assert reply[:3] == "220"
            assert await named(client, "ADDR=198.51.100.9") == "554 5.7.1 Not you"
            assert await client.ended()
        await until(lambda: len(calls) == 6)
    hosts = ["127.0.0.1", "198.51.100.7", "198.51.100.9"]
    assert sorted(calls) == sorted((what, h) for h in hosts for what in ("connect", "disconnect"))
    assert [host for what, host in calls if what == "connect"] == hosts


async def test_relaying_depends_on_the_client_and_not_on_its_proxy() -> None:
    chain = [Accept(["a.example"], relay_from=["127.0.0.0/8"]), Discard()]
    async with greeted(chain, **TRUST) as client:
        for words, code in {
            "ADDR=198.51.100.7": 550,
            "ADDR=198.51.100.7 LOGIN=bob": 250,
            "ADDR=198.51.100.8": 550,
            "ADDR=127.0.0.3": 250,
            "ADDR=[UNAVAILABLE]": 550,
        }.items():
            await named(client, words)
            await client.say("EHLO x", "MAIL FROM:<a@b.example>")
            assert (await client.say("RCPT TO:<c@elsewhere.example>")).code == code, words
            await client.say("RSET")


async def test_conditions_depend_on_the_client() -> None:
    class Refuses:
        async def handle_MAIL(self, *_: Any) -> str:
            return "550 5.7.1 No"

    submission = {"client": ["198.51.100.0/24"], "listener": [":587"]}
    async with greeted([Route(Refuses(), when=submission), Discard()], **TRUST) as client:
        for words, code in {
            "ADDR=198.51.100.7 DESTADDR=192.0.2.25 DESTPORT=587": 550,
            "ADDR=198.51.100.7 DESTADDR=192.0.2.25 DESTPORT=25": 250,
            "ADDR=198.51.200.7 DESTADDR=192.0.2.25 DESTPORT=587": 250,
        }.items():
            await named(client, words)
            await client.say("EHLO x")
            assert (await client.say("MAIL FROM:<a@b.example>")).code == code, words
            await client.say("RSET")


async def test_tls_continues_for_another_client_and_fulfils_its_requirement(
    certificates: Certificates,
) -> None:
    seen: list[Any] = []

    class Sees(Discard):
        async def handle_MAIL(self, server: Any, session: Any, *_: Any) -> Any:
            seen.append((session.peer[0], session.host_name_dns, session.local[0]))
            seen.append((bool(session.authenticated), session.ssl is not None))
            return MISSING

    options = {"tls_context": certificates.server, "require_starttls": True}
    async with greeted(Sees(), **options, **TRUST) as client:
        words = "ADDR=198.51.100.7 NAME=a.example DESTADDR=192.0.2.25 LOGIN=bob"
        assert (await named(client, words))[:3] == "220"
        assert "STARTTLS" in (await client.say("EHLO x")).text
        assert (await client.say("MAIL FROM:<a@b.example>")).code == 530
        await client.start_tls(certificates.client)
        hello = await client.say("EHLO x")
        assert "XCLIENT" in hello.text
        assert (await client.deliver()).code == 250
        assert (await named(client, "ADDR=198.51.100.8"))[:3] == "220"
        assert "STARTTLS" not in (await client.say("EHLO x")).text
        assert (await client.deliver()).code == 250
    assert seen[:2] == [("198.51.100.7", "a.example", "192.0.2.25"), (False, True)]
    assert seen[2:] == [("198.51.100.8", None, "127.0.0.1"), (False, True)]


async def test_pipelined_commands_belong_to_the_named_client() -> None:
    looks = Looks()
    async with greeted(looks, **TRUST) as client:
        commands = ("XCLIENT ADDR=198.51.100.7", "EHLO y", "MAIL FROM:<a@b.example>", "RSET",
                    "XCLIENT ADDR=198.51.100.8", "EHLO z", "MAIL FROM:<a@b.example>")  # fmt: skip
        assert (await client.say(*commands)).code == 250
    assert [(peer[0], helo) for peer, _, helo in looks.seen] == [
        ("198.51.100.7", "y"),
        ("198.51.100.8", "z"),
    ]


async def test_a_reload_changes_who_is_trusted() -> None:
    async with serve(Discard()) as server:
        settings = {"listen": ["127.0.0.1:0"], "hostname": "mx.example.com"}
        lines = await server.reload(Config.build({**settings, **TRUST, "xforward_trust": "unix"}))
        assert [line for line in lines if "trust" in line] == [
            "xclient_trust +127.0.0.1",
            "xforward_trust +unix",
        ]
        async with await Client.to(server.addresses[0]) as client:
            text = (await client.greet()).text
            assert "XCLIENT" in text
            assert "XFORWARD" not in text


async def test_xforward_changes_only_the_data_about_the_origin() -> None:
    mails: list[Any] = []

    class Keeps(Discard):
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            mails.append((session.peer[0], envelope.xforward))
            return "250 2.0.0 Ok"

    options: dict[str, Any] = {"xforward_trust": ["127.0.0.0/24"], "deny": ["198.51.100.7"]}
    async with greeted(Keeps(), **options) as client:
        words = "ADDR=198.51.100.7 HELO=x SOURCE=REMOTE"
        assert (await client.say(f"XFORWARD {words}")).code == 250
        assert (await client.say("XCLIENT ADDR=198.51.100.7")).code == 500
        assert (await client.deliver()).code == 250
    origin = {"ADDR": "198.51.100.7", "HELO": "x", "SOURCE": "REMOTE"}
    assert mails == [("127.0.0.1", origin)]
