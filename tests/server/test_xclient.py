"""XCLIENT: a trusted host names its clients, and each is judged as if it had connected itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import MISSING
from support.client import Client
from support.nameserver import name_server
from support.server import greeted, running, serve, until

from smtpd_fork import Config, Route, Server
from smtpd_fork.filters import Accept
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from support.tls import Certificates

TRUST: dict[str, Any] = {"xclient_trust": ["127.0.0.1"]}
OTHER = "127.0.0.9"
"""A client that is not trusted."""


class Looks(Discard):
    """Keeps what is known of the client of each message."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def handle_MAIL(self, server: Any, session: Any, *_: Any) -> Any:
        self.seen.append((session.peer, session.host_name_dns, session.host_name))
        return MISSING


async def named(client: Client, words: str) -> str:
    """Name a client; return the code, and the text."""
    reply = await client.say(f"XCLIENT {words}")
    return f"{reply.code} {reply.text}"


async def proxy_to(server: Server, words: str, *, source: str | None = None) -> tuple[Client, str]:
    """Connect as a proxy, and name a client."""
    client = await Client.to(server.addresses[0], source=source)
    await client.greet("proxy.example")
    return client, await named(client, words)


async def test_the_session_is_the_clients_from_then_on() -> None:
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


async def test_another_host_may_not_name_a_client() -> None:
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


# -- the gate ----------------------------------------------------------------------------------


async def test_limits_are_those_of_the_named_clients_and_not_of_their_proxy() -> None:
    async with serve(Discard(), max_from_ip=2, max_from_net=["3/24"], **TRUST) as server:
        proxies = []
        said = []
        for number in (7, 7, 7, 8, 9):
            client, reply = await proxy_to(server, f"ADDR=198.51.100.{number}")
            proxies.append(client)
            said.append(reply)
        assert [reply[:3] for reply in said] == ["220", "220", "421", "220", "421"]
        assert "Too many connections from 198.51.100.7, try again later [" in said[2]
        assert "Too many connections from 198.51.100.0/24" in said[4]
        assert await proxies[2].ended()
        await until(lambda: server.gate.count == 3)
        assert server.gate.clients == {"198.51.100.7": 2, "198.51.100.8": 1}
        for client in proxies:
            await client.close()
        await until(lambda: server.gate.count == 0)


async def test_one_client_after_another_takes_the_place() -> None:
    async with serve(Discard(), max_from_ip=1, **TRUST) as server:
        client, _ = await proxy_to(server, "ADDR=198.51.100.7")
        async with client:
            for number in (7, 8, 7):
                assert (await named(client, f"ADDR=198.51.100.{number}"))[:3] == "220"
                assert server.gate.clients == {f"198.51.100.{number}": 1}
            assert (await named(client, "ADDR=[UNAVAILABLE]"))[:3] == "220"
            assert (server.gate.clients, server.gate.count) == ({}, 1)


async def test_a_rate_counts_the_clients_and_a_proxy_has_none() -> None:
    async with serve(Discard(), rate="2/h", rate_net="4/h/24", **TRUST) as server:
        said = []
        for number in (7, 7, 7, 8, 8, 9):
            client, reply = await proxy_to(server, f"ADDR=198.51.100.{number}")
            said.append(reply[:3])
            await client.close()
        assert said == ["220", "220", "421", "220", "220", "421"]


@pytest.mark.parametrize("word", ["198.51.100.7", "IPV6:2001:db8::7"])
async def test_a_denied_client_is_refused_with_its_text_and_explained(word: str) -> None:
    deny = ["198.51.100.0/24", "2001:db8::/32"]
    async with serve(Discard(), deny=deny, **TRUST) as server:
        client, reply = await proxy_to(server, f"ADDR={word}")
        async with client:
            assert reply.startswith("554 5.7.1 mx.example.com Access denied")
            assert await client.ended()
        explanation = server.gate.explain(reply.rpartition("[")[2].rstrip("]"))
        assert explanation is not None
        assert explanation.refusal.rule == "deny"
        assert server.gate.stats()["refused_deny"] == 1


async def test_a_denied_proxy_is_refused_when_it_connects() -> None:
    async with serve(Discard(), deny=["127.0.0.1"], **TRUST) as server:
        async with await Client.to(server.addresses[0]) as client:
            assert (await client.reply()).code == 554


async def test_a_trusted_host_that_names_nobody_has_no_limits_of_its_own() -> None:
    async with serve(Discard(), max_from_ip=1, rate="1/h", greet_pause=30, **TRUST) as server:
        clients = [await Client.to(server.addresses[0]) for _ in range(5)]
        for client in clients:
            assert (await client.greet()).code == 250
        assert server.gate.clients == {"127.0.0.1": 5}
        assert [each.exempt for each in server.gate.ledger()] == [True] * 5
        for client in clients:
            await client.close()


async def test_counts_follow_a_change_of_the_limits() -> None:
    async with serve(Discard(), max_from_ip=3, **TRUST) as server:
        named_one, _ = await proxy_to(server, "ADDR=IPV6:2001:db8::7")
        waiting = await Client.to(server.addresses[0])
        await waiting.greet()
        await server.set_limits(max_from_ip=1, ipv6_prefix=48)
        assert server.gate.clients == {"2001:db8::/48": 1, "127.0.0.1": 1}
        exempt = {each.key: each.exempt for each in server.gate.ledger()}
        assert exempt == {"2001:db8::/48": False, "127.0.0.1": True}
        assert (await named(waiting, "ADDR=IPV6:2001:db8::8"))[:3] == "421"
        await named_one.close()
        await waiting.close()
        await until(lambda: server.gate.count == 0)


# -- the DNS -----------------------------------------------------------------------------------


async def test_the_client_is_looked_up_and_its_proxy_is_not() -> None:
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


async def test_a_client_that_leaves_while_the_dns_is_asked_leaves_nothing() -> None:
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


# -- handlers, TLS and the rest ----------------------------------------------------------------


async def test_handlers_see_one_client_go_and_the_next_one_come() -> None:
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


async def test_relaying_is_for_the_client_to_have_and_not_for_its_proxy() -> None:
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


async def test_conditions_go_by_the_client() -> None:
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


async def test_tls_goes_on_under_another_client_and_its_requirement_is_met(
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


async def test_what_is_pipelined_behind_is_the_clients() -> None:
    looks = Looks()
    async with greeted(looks, **TRUST) as client:
        commands = ("XCLIENT ADDR=198.51.100.7", "EHLO y", "MAIL FROM:<a@b.example>", "RSET",
                    "XCLIENT ADDR=198.51.100.8", "EHLO z", "MAIL FROM:<a@b.example>")  # fmt: skip
        assert (await client.say(*commands)).code == 250
    assert [(peer[0], helo) for peer, _, helo in looks.seen] == [
        ("198.51.100.7", "y"),
        ("198.51.100.8", "z"),
    ]


async def test_the_tarpit_is_for_the_client_that_has_deserved_it() -> None:
    async with serve(Discard(), tarpit=0.02, max_from_ip=2, max_rejects=100, **TRUST) as server:
        (first, _), (second, _) = [await proxy_to(server, "ADDR=198.51.100.7") for _ in "12"]
        delays = [each.dialogue.tarpit for each, _ in running(server).sessions.all()]
        assert sorted(delays) == [0.0, 0.02]  # the second is near the limit
        assert (await named(second, "ADDR=198.51.100.8"))[:3] == "220"
        for _ in range(11):
            await second.say("MAIL FROM:<a@b.example>")
        delays = [each.dialogue.tarpit for each, _ in running(server).sessions.all()]
        assert sorted(delays) == [0.0, 0.02]  # for its refused commands
        assert (await named(second, "ADDR=198.51.100.9"))[:3] == "220"
        assert not any(each.dialogue.tarpit for each, _ in running(server).sessions.all())
        for client in (first, second):
            await client.close()


async def test_memory_is_charged_to_the_client_that_holds_it() -> None:
    options = {"max_buffered": "4M", "max_buffered_from_ip": "1M", "max_message_size": "1M"}
    async with serve(Discard(), **options, **TRUST) as server:
        budget = server._budget
        client, _ = await proxy_to(server, "ADDR=198.51.100.7")
        async with client:
            for number in (7, 8):
                await named(client, f"ADDR=198.51.100.{number}")
                await client.say("EHLO x", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>")
                assert (await client.say("DATA")).code == 354
                client.send(b"x" * 900_000)
                await until(lambda: budget.used > 700_000)
                assert budget.used_by(f"198.51.100.{number}") == budget.used
                client.send("\r\n.\r\n")
                assert (await client.reply()).code == 250
                await until(lambda: budget.used == 0)


async def test_input_that_waits_is_charged_to_the_client_that_was_named_before_it() -> None:
    shares: list[tuple[int, int]] = []

    class Looks(Discard):
        async def handle_CONNECT(self, server: Any, session: Any) -> Any:
            budget = server.connection.shared.budget
            shares.append((budget.used_by("127.0.0.1"), budget.used_by("198.51.100.7")))
            return MISSING

    async with name_server() as names:
        names.records["7.100.51.198.a.example", "A"] = None
        options = {"dnsbl": ["a.example"], "dns_server": names.address, "dns_timeout": 0.5}
        async with serve(Looks(), max_errors=100_000, **options, **TRUST) as server:
            async with await Client.to(server.addresses[0]) as client:
                await client.greet()
                client.send("XCLIENT ADDR=198.51.100.7\r\n" + "NOOP\r\n" * 40_000)
                await until(lambda: server._budget.used_by("127.0.0.1") > 0)
                assert (await client.reply()).code == 220
                client.reset()
            await until(lambda: server.gate.count == 0)
            assert server._budget.used == 0
    assert shares[0] == (0, 0)
    assert shares[1][0] == 0
    assert shares[1][1] > 0


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


async def test_xforward_changes_nothing_but_what_is_known_of_the_origin() -> None:
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
