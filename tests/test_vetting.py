"""What the DNS knows of a client: blocklists and names, from a real server on loopback."""

from __future__ import annotations

from typing import Any

import pytest
from support.client import Client
from support.handlers import Notes
from support.nameserver import NameServer, name_server
from support.server import serve, until

from smtpd_fork import Config, SmtpdForkError
from smtpd_fork.listeners.lookup import parse_nameserver, read_zones
from smtpd_fork.sinks import Discard


def vetted(names: NameServer, handler: Any = None, **options: Any) -> Any:
    options.setdefault("dns_timeout", 5)
    return serve(handler or Discard(), dns_server=names.address, **options)


def listed(names: NameServer, zone: str, host: str = "127.0.0.1", code: str = "127.0.0.2") -> None:
    names.records[".".join(reversed(host.split("."))) + f".{zone}", "A"] = code


async def test_who_is_listed_is_told_554_and_by_whom() -> None:
    async with name_server() as names, vetted(names, dnsbl=["a.example", "b.example"]) as server:
        listed(names, "a.example")
        async with await Client.to(server.addresses[0]) as client:
            code, (text,) = await client.reply()
            assert (code, text[:5]) == (554, "5.7.1")
            assert "127.0.0.1 is listed by a.example [" in text
            assert await client.ended()
        assert server.gate.stats()["refused_dnsbl"] == 1
        async with await Client.to(server.addresses[0], source="127.0.0.2") as other:
            assert (await other.greet()).code == 250


async def test_weights_add_up_to_the_threshold_and_may_speak_for_a_client() -> None:
    zones = ["a.example", "b.example=2", "good.example=-5"]
    async with name_server() as names:
        async with vetted(names, dnsbl=zones, dnsbl_threshold=3) as server:
            for number, lists in enumerate(("a", "b", "ab", "ab good")):
                host = f"127.0.1.{number + 1}"
                for zone in zones:
                    if zone.partition(".")[0] in lists.split() or zone[0] in lists.split()[0]:
                        listed(names, zone.partition("=")[0], host)
                async with await Client.to(server.addresses[0], source=host) as client:
                    assert (await client.reply()).code == (554 if lists == "ab" else 220)


async def test_an_answer_that_is_no_listing_is_none() -> None:
    """A zone that was given up answers everything with an address of its own."""
    async with name_server() as names, vetted(names, dnsbl="a.example") as server:
        listed(names, "a.example", code="192.0.2.1")
        async with await Client.to(server.addresses[0]) as client:
            assert (await client.greet()).code == 250


@pytest.mark.parametrize("answer", [None, "SERVFAIL", "nonsense"])
async def test_a_zone_that_does_not_answer_stops_nobody(
    answer: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"dnsbl": ["down.example", "up.example"], "dns_timeout": 0.3}
    async with name_server() as names, vetted(names, **options) as server:
        names.records["1.0.0.127.down.example", "A"] = answer
        names.records["2.0.0.127.down.example", "A"] = answer
        listed(names, "up.example", "127.0.0.2")
        for _ in range(2):
            async with await Client.to(server.addresses[0]) as client:
                assert (await client.greet()).code == 250
        async with await Client.to(server.addresses[0], source="127.0.0.2") as client:
            assert (await client.reply()).code == 554  # the other zone did answer
    assert caplog.text.count("down.example does not answer") == 1


async def test_answers_are_kept_for_their_time_to_live() -> None:
    async with name_server() as names, vetted(names, dnsbl="a.example") as server:
        listed(names, "a.example")
        for _ in range(5):
            async with await Client.to(server.addresses[0]) as client:
                assert (await client.reply()).code == 554
        assert names.asked == [("1.0.0.127.a.example", "A")]


async def test_sources_of_ipv6_are_looked_up_by_their_address() -> None:
    nibbles = ".".join(["1", *["0"] * 31])
    async with name_server() as names:
        async with vetted(names, dnsbl="a.example", listen=["[::1]:0"]) as server:
            names.records[f"{nibbles}.a.example", "A"] = "127.0.0.2"
            async with await Client.to(server.addresses[0]) as client:
                assert "::1 is listed by a.example" in (await client.reply()).text


@pytest.mark.parametrize(
    ("records", "name"),
    [
        ({("1.0.0.127.in-addr.arpa", "PTR"): "MX.Example.", ("mx.example", "A"): "127.0.0.1"},
         "mx.example"),
        ({("1.0.0.127.in-addr.arpa", "PTR"): "mx.example.", ("mx.example", "A"): "192.0.2.1"},
         None),
        ({("1.0.0.127.in-addr.arpa", "PTR"): "mx.example."}, None),
        ({("1.0.0.127.in-addr.arpa", "PTR"): None}, None),
        ({}, None),
    ],
    ids=["leads back", "leads elsewhere", "leads nowhere", "silence", "no name"],
)  # fmt: skip
async def test_a_name_counts_only_if_it_leads_back(records: Any, name: str | None) -> None:
    handler = Notes()
    async with name_server() as names, vetted(names, handler, rdns=True, dns_timeout=0.5) as server:
        names.records = {(n.lower(), kind): text for (n, kind), text in records.items()}
        names.records.update(
            {
                (n.replace("mx", "MX").replace("example", "Example"), kind): text
                for (n, kind), text in records.items()
            }
        )
        async with await Client.to(server.addresses[0]) as client:
            assert (await client.greet()).code == 250
    assert [session.host_name_dns for session in handler.sessions] == [name]


async def test_exempt_clients_are_not_looked_up() -> None:
    options = {"dnsbl": "a.example", "exempt": "127.0.0.1", "rdns": True}
    async with name_server() as names, vetted(names, **options) as server:
        listed(names, "a.example")
        async with await Client.to(server.addresses[0]) as client:
            assert (await client.greet()).code == 250
        assert names.asked == []


@pytest.mark.parametrize("end", ["close", "reset", "stop"])
async def test_who_goes_while_the_dns_is_asked_gives_its_place_back(end: str) -> None:
    async with name_server() as names:
        async with vetted(names, dnsbl="a.example", dns_timeout=0.5) as server:
            names.records["1.0.0.127.a.example", "A"] = None
            client = await Client.to(server.addresses[0])
            await until(lambda: names.asked)
            assert [entry.phase for entry in server.gate.ledger()] == ["dns"]
            if end == "stop":
                await server.stop()
                assert (await client.reply()).code == 421
            elif end == "reset":
                client.reset()
            else:
                await client.close()
            await until(lambda: not server.gate.count)
            await client.close()


async def test_the_greet_pause_comes_after_the_dns() -> None:
    async with name_server() as names, vetted(names, rdns=True, greet_pause=0.1) as server:
        async with await Client.to(server.addresses[0]) as client:
            assert (await client.greet()).code == 250
            assert (await client.deliver()).code == 250


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("dnsbl", "a b"), ("dnsbl", "=1"), ("dnsbl", "a.example=x"), ("dnsbl", "a.example=99999"),
        ("dnsbl", "x" * 200), ("dnsbl", "-a.example"), ("dns_server", "localhost"),
        ("dns_server", "192.0.2.1:x"), ("dns_server", "[::1"), ("dnsbl_threshold", 0),
        ("dns_timeout", "0s"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(setting: str, value: Any) -> None:
    with pytest.raises(SmtpdForkError, match=setting) as caught:
        config = Config.build({setting: value})
        read_zones(config.dnsbl)
        parse_nameserver(config.dns_server)
    assert repr(value) in str(caught.value)
