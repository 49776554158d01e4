"""XCLIENT and the gate: limits, lists, tarpit and memory are those of the named client."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from aiosmtpd.smtp import MISSING
from support.client import Client
from support.nameserver import name_server
from support.server import running, serve, until
from support.xclient import TRUST, named, proxy_to

from smtpd_fork.sinks import Discard


async def test_limits_apply_to_the_named_clients_and_not_to_their_proxy() -> None:
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


async def test_each_named_client_replaces_the_previous_one_in_the_counts() -> None:
    async with serve(Discard(), max_from_ip=1, **TRUST) as server:
        client, _ = await proxy_to(server, "ADDR=198.51.100.7")
        async with client:
            for number in (7, 8, 7):
                assert (await named(client, f"ADDR=198.51.100.{number}"))[:3] == "220"
                assert server.gate.clients == {f"198.51.100.{number}": 1}
            assert (await named(client, "ADDR=[UNAVAILABLE]"))[:3] == "220"
            assert (server.gate.clients, server.gate.count) == ({}, 1)


async def test_a_rate_limit_applies_to_the_clients_and_not_to_the_proxy() -> None:
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


async def test_per_client_limits_do_not_apply_to_a_trusted_host() -> None:
    async with serve(Discard(), max_from_ip=1, rate="1/h", greet_pause=30, **TRUST) as server:
        clients = [await Client.to(server.addresses[0]) for _ in range(5)]
        for client in clients:
            assert (await client.greet()).code == 250
        assert server.gate.clients == {"127.0.0.1": 5}
        assert [each.exempt for each in server.gate.ledger()] == [True] * 5
        for client in clients:
            await client.close()


async def test_per_client_limits_do_not_apply_to_a_trusted_host_behind_a_proxy() -> None:
    listen = {"listen": ["smtp+proxy:127.0.0.1:0"], "proxy_trust": ["127.0.0.1"]}
    limits: dict[str, Any] = {"max_from_ip": 1, "rate": "1/h", "greet_pause": 30}
    trust = {"xclient_trust": ["192.0.2.1"]}
    async with serve(Discard(), **listen, **limits, **trust) as server:
        clients = [await Client.to(server.addresses[0]) for _ in range(3)]
        for number, client in enumerate(clients):
            client.send("PROXY TCP4 192.0.2.1 192.0.2.2 4025 25\r\n")
            assert (await client.greet()).code == 250
            assert (await named(client, f"ADDR=198.51.100.{number}"))[:3] == "220"
        assert server.gate.clients == {f"198.51.100.{number}": 1 for number in range(3)}
        await server.reload(msgspec.structs.replace(server.config, xclient_trust=()))
        async with await Client.to(server.addresses[0]) as other:
            other.send("PROXY TCP4 192.0.2.1 192.0.2.2 4025 25\r\n")
            await until(lambda: server.gate.clients.get("192.0.2.1") == 1)
            assert not any(each.exempt for each in server.gate.ledger())
        for client in clients:
            await client.close()
        await until(lambda: server.gate.count == 0)


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


async def test_the_tarpit_applies_to_the_client_that_caused_it() -> None:
    async with serve(Discard(), tarpit=0.02, max_from_ip=2, max_rejects=100, **TRUST) as server:
        (first, _), (second, _) = [await proxy_to(server, "ADDR=198.51.100.7") for _ in "12"]
        delays = [each.dialogue.tarpit for each, _ in running(server).sessions.all()]
        assert sorted(delays) == [0.0, 0.02]  # the second session is near the limit
        assert (await named(second, "ADDR=198.51.100.8"))[:3] == "220"
        for _ in range(11):
            await second.say("MAIL FROM:<a@b.example>")
        delays = [each.dialogue.tarpit for each, _ in running(server).sessions.all()]
        assert sorted(delays) == [0.0, 0.02]  # because of its refused commands
        assert (await named(second, "ADDR=198.51.100.9"))[:3] == "220"
        assert not any(each.dialogue.tarpit for each, _ in running(server).sessions.all())
        for client in (first, second):
            await client.close()


async def test_the_listing_of_a_client_does_not_apply_to_the_next_client() -> None:
    async with name_server() as names:
        names.records["7.100.51.198.a.example", "A"] = "127.0.0.2"
        lists = {"dnsbl": ["a.example"], "dnsbl_threshold": 2, "dns_server": names.address}
        exempt = {"exempt": ["198.51.100.8"], "dns_timeout": 5}
        async with serve(Discard(), tarpit=0.02, **lists, **exempt, **TRUST) as server:
            client, _ = await proxy_to(server, "ADDR=198.51.100.7")
            async with client:
                ((connection, ticket),) = running(server).sessions.all()
                assert (connection.dialogue.tarpit, ticket.listed_by) == (
                    0.02,
                    "a.example (127.0.0.2)",
                )
                for another in ("ADDR=[UNAVAILABLE]", "ADDR=198.51.100.8"):
                    assert (await named(client, another))[:3] == "220"
                    assert (connection.dialogue.tarpit, ticket.listed_by) == (0.0, "")
                    assert (await named(client, "ADDR=198.51.100.7"))[:3] == "220"
                    assert connection.dialogue.tarpit == 0.02


async def test_memory_is_charged_to_the_client_that_uses_it() -> None:
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


async def test_waiting_input_is_charged_to_the_client_named_before_it() -> None:
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
