"""DNS checks of clients: blocklists and reverse names, with a real name server on loopback."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.handlers import Notes
from support.nameserver import NameServer, name_server
from support.peers import proc
from support.server import serve, until

from smtpd_fork import Config, SmtpdForkError
from smtpd_fork.listeners.dnsbl import read_entries
from smtpd_fork.listeners.resolver import Resolver, parse_nameserver
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from smtpd_fork import Server

CLIENT = "127.0.0.9"


def serving(names: NameServer, handler: Any = None, **options: Any) -> Any:
    options.setdefault("dns_timeout", 5)
    return serve(handler or Discard(), dns_server=names.address, **options)


async def connect(server: Server, source: str = CLIENT) -> Client:
    return await Client.to(server.addresses[0], source=source)


def listed(names: NameServer, zone: str, host: str = CLIENT, code: str = "127.0.0.2") -> None:
    names.records[".".join(reversed(host.split("."))) + f".{zone}", "A"] = code


async def test_a_listed_client_gets_554_with_the_name_of_the_list() -> None:
    async with name_server() as names, serving(names, dnsbl=["a.example", "b.example"]) as server:
        listed(names, "a.example")
        async with await connect(server) as client:
            code, (text,) = await client.reply()
            assert (code, text[:5]) == (554, "5.7.1")
            assert f"{CLIENT} is listed by a.example (127.0.0.2) [" in text
            assert await client.ended()
        assert server.gate.stats()["refused_dnsbl"] == 1
        async with await connect(server, source="127.0.0.8") as other:
            assert (await other.greet()).code == 250


async def test_weights_are_added_and_a_negative_weight_helps_a_client() -> None:
    zones = ["a.example", "b.example=2", "good.example=-5"]
    async with name_server() as names:
        async with serving(names, dnsbl=zones, dnsbl_threshold=3) as server:
            for number, lists in enumerate(("a", "b", "ab", "ab good")):
                host = f"127.0.1.{number + 1}"
                for zone in zones:
                    if zone.partition(".")[0] in lists.split() or zone[0] in lists.split()[0]:
                        listed(names, zone.partition("=")[0], host)
                async with await connect(server, source=host) as client:
                    assert (await client.reply()).code == (554 if lists == "ab" else 220)


@pytest.mark.parametrize(
    "code", ["127.0.0.1", "127.255.255.252", "127.255.255.254", "127.255.255.255", "192.0.2.1"]
)
@pytest.mark.parametrize("entry", ["a.example", "a.example=127.[0..255].[0..255].[0..255]"])
async def test_an_error_of_a_list_is_not_a_listing_and_is_logged_once(
    code: str, entry: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with name_server() as names, serving(names, dnsbl=entry) as server:
        for number in range(9, 14):
            listed(names, "a.example", f"127.0.0.{number}", code)
            async with await connect(server, f"127.0.0.{number}") as client:
                assert (await client.greet()).code == 250
    (warning,) = (message for message in caplog.messages if "answers" in message)
    assert f"the blocklist a.example answers {code} (" in warning


async def test_an_entry_counts_once_and_only_if_its_codes_match() -> None:
    zones = ["a.example=127.0.0.[2;4..7]=2", "a.example=127.0.0.[10..11]", "a.example=127.0.1.2=3"]
    scores = {
        "127.0.0.2": 2, "127.0.0.3": 0, "127.0.0.4": 2, "127.0.0.7": 2, "127.0.0.8": 0,
        "127.0.0.10": 1, "127.0.1.2": 3, "127.0.0.2 127.0.0.4": 2, "127.0.0.4 127.0.0.11": 3,
        "127.0.0.3 127.0.0.8": 0,
    }  # fmt: skip
    async with name_server() as names:
        async with serving(names, dnsbl=zones, dnsbl_threshold=2) as server:
            for number, (codes, score) in enumerate(scores.items(), 1):
                listed(names, "a.example", f"127.0.1.{number}", codes)
                async with await connect(server, f"127.0.1.{number}") as client:
                    code, (text,) = await client.reply()
                assert code == (554 if score >= 2 else 220), codes
                if code == 554:
                    name = text.rpartition("[")[2].rstrip("]")
                    explanation = server.gate.explain(name)
                    assert explanation is not None
                    assert explanation.refusal.count == score
                    assert f"listed by a.example ({codes})" in str(explanation)


async def test_the_origin_of_a_refusal_has_each_entry_that_lists_the_client() -> None:
    zones = [
        "a.example=127.0.0.2=2",
        "a.example=127.0.0.[4..5]",
        "a.example=127.0.0.9",
        "b.example",
    ]
    async with name_server() as names, serving(names, dnsbl=zones) as server:
        listed(names, "a.example", code="127.0.0.2 127.0.0.4")
        listed(names, "b.example")
        async with await connect(server) as client:
            _, (text,) = await client.reply()
        explanation = server.gate.explain(text.rpartition("[")[2].rstrip("]"))
        assert explanation is not None
        assert explanation.refusal.origin == (
            "--dnsbl a.example=127.0.0.2=2, --dnsbl a.example=127.0.0.[4..5], --dnsbl b.example"
        )


async def test_a_listing_is_one_line_of_the_log_with_its_codes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "smtpd_fork")
    async with name_server() as names, serving(names, dnsbl="a.example") as server:
        listed(names, "a.example", code="127.0.0.4 127.0.0.11")
        async with await connect(server) as client:
            assert (await client.reply()).code == 554
    (line,) = (message for message in caplog.messages if "listed" in message)
    assert line.startswith(f"refused {CLIENT}: dnsbl, listed by a.example (127.0.0.4 127.0.0.11)")


NIBBLES_1 = "1.0.0.0.0.0.f.7.f.f.f.f" + 20 * ".0" + ".a.example"
NIBBLES_2 = NIBBLES_1.replace("1", "2", 1)


@pytest.mark.parametrize(
    ("records", "family", "reason"),
    [
        ({"1.0.0.127.a.example": "127.0.0.2"}, "IPv4", "lists 127.0.0.1"),
        ({"2.0.0.127.a.example": ""}, "IPv4", "does not list 127.0.0.2"),
        ({"2.0.0.127.a.example": "127.255.255.254"}, "IPv4", "answers 127.255.255.254"),
        ({"1.0.0.127.a.example": "192.0.2.1"}, "IPv4", "answers 192.0.2.1"),
        ({NIBBLES_1: "127.0.0.2"}, "IPv6", "lists ::ffff:7f00:1"),
        ({NIBBLES_2: "127.255.255.255"}, "IPv6", "answers 127.255.255.255"),
    ],
)
async def test_a_list_is_not_used_while_its_test_entries_are_wrong(
    records: dict[str, str],
    family: str,
    reason: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("smtpd_fork.listeners.dnsbl_health_check.CHECK_SECONDS", 0.05)
    host = "[::1]" if family == "IPv6" else "127.0.0.1"
    source = "::1" if family == "IPv6" else CLIENT
    async with name_server() as names:
        listed(names, "a.example")
        names.records[".".join(["1", *["0"] * 31, "a.example"]), "A"] = "127.0.0.2"
        names.records.update({(name, "A"): answer for name, answer in records.items()})
        async with serving(names, dnsbl="a.example", listen=[f"{host}:0"]) as server:
            await until(lambda: reason in caplog.text)
            assert f"it is not used for {family} clients" in caplog.text
            assert server.zones == {"a.example": family == "IPv6"}
            async with await connect(server, source) as client:
                assert (await client.greet()).code == 250
            for name in records:
                del names.records[name, "A"]
            await until(lambda: f"works again: it is used for {family} clients" in caplog.text)
            async with await connect(server, source) as client:
                assert (await client.reply()).code == 554
            assert server.zones == {"a.example": True}
    assert caplog.text.count("it is not used for") == 1


async def test_a_list_without_ipv6_entries_is_used(caplog: pytest.LogCaptureFixture) -> None:
    async with name_server() as names, serving(names, dnsbl="a.example") as server:
        listed(names, "a.example")
        await until(lambda: (NIBBLES_1, "A") in names.asked)
        async with await connect(server) as client:
            assert (await client.reply()).code == 554
    assert "blocklist" not in caplog.text


async def test_a_start_does_not_wait_for_the_check_and_a_stop_ends_it() -> None:
    async with name_server() as names:
        names.records["2.0.0.127.a.example", "A"] = None
        async with serving(names, dnsbl="a.example", dns_timeout=30) as server:
            async with await connect(server, "127.0.0.8") as client:
                assert (await client.greet()).code == 250
        await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})


@pytest.mark.parametrize("turns", range(8))
async def test_a_client_refused_during_dns_queries_leaks_no_socket(turns: int) -> None:
    descriptors = proc("self", "fd")

    def sockets() -> set[str]:
        links = [descriptors / name for name in os.listdir(descriptors)]
        return {os.readlink(link) for link in links if link.is_symlink()}

    async with name_server() as names:
        names.records["9.0.0.127.a.example", "A"] = None
        dns = Resolver(read_entries(["a.example"]), parse_nameserver(names.address), 5)
        before = sockets()
        asking = asyncio.ensure_future(dns.listed(CLIENT))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(lambda: not any(link.startswith("socket:") for link in sockets() - before))


async def test_a_reload_checks_only_the_lists_of_the_new_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("smtpd_fork.listeners.dnsbl_health_check.CHECK_SECONDS", 0.02)
    async with name_server() as names, serving(names, dnsbl="a.example") as server:
        for zone in ("a.example", "b.example"):
            listed(names, zone)
        await until(lambda: ("1.0.0.127.a.example", "A") in names.asked)
        await server.reload(Config.build({"dnsbl": "b.example", "dns_server": names.address}))
        await until(lambda: ("1.0.0.127.b.example", "A") in names.asked)
        names.asked.clear()
        for _ in range(2):
            await until(lambda: names.asked.count((NIBBLES_1.replace("a.", "b."), "A")) > 3)
        assert not [name for name, _ in names.asked if name.endswith("a.example")]
        assert server.zones == {"b.example": True}


@pytest.mark.parametrize("answer", [None, "SERVFAIL", "nonsense"])
async def test_clients_are_admitted_if_a_zone_does_not_answer(
    answer: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"dnsbl": ["down.example", "up.example"], "dns_timeout": 0.3}
    async with name_server() as names, serving(names, **options) as server:
        for number in (1, 2, 8, 9):
            names.records[f"{number}.0.0.127.down.example", "A"] = answer
        listed(names, "up.example", "127.0.0.8")
        for _ in range(2):
            async with await connect(server) as client:
                assert (await client.greet()).code == 250
        async with await connect(server, source="127.0.0.8") as client:
            assert (await client.reply()).code == 554  # the other zone did answer
    assert caplog.text.count("down.example does not answer") == 1


async def test_answers_are_cached_for_their_time_to_live() -> None:
    async with name_server() as names, serving(names, dnsbl="a.example") as server:
        listed(names, "a.example")
        for _ in range(5):
            async with await connect(server) as client:
                assert (await client.reply()).code == 554
        assert names.asked.count(("9.0.0.127.a.example", "A")) == 1


async def test_ipv6_clients_are_looked_up_by_their_address() -> None:
    nibbles = ".".join(["1", *["0"] * 31])
    async with name_server() as names:
        async with serving(names, dnsbl="a.example", listen=["[::1]:0"]) as server:
            names.records[f"{nibbles}.a.example", "A"] = "127.0.0.2"
            async with await Client.to(server.addresses[0]) as client:
                assert "::1 is listed by a.example" in (await client.reply()).text


@pytest.mark.parametrize(
    ("records", "name"),
    [
        ({("9.0.0.127.in-addr.arpa", "PTR"): "MX.Example.", ("mx.example", "A"): CLIENT},
         "mx.example"),
        ({("9.0.0.127.in-addr.arpa", "PTR"): "mx.example.", ("mx.example", "A"): "192.0.2.1"},
         None),
        ({("9.0.0.127.in-addr.arpa", "PTR"): "mx.example."}, None),
        ({("9.0.0.127.in-addr.arpa", "PTR"): None}, None),
        ({}, None),
    ],
    ids=["the client", "another address", "no address", "no answer", "no name"],
)  # fmt: skip
async def test_a_reverse_name_is_used_only_if_it_resolves_to_the_client(
    records: Any, name: str | None
) -> None:
    handler = Notes()
    async with (
        name_server() as names,
        serving(names, handler, rdns=True, dns_timeout=0.5) as server,
    ):
        names.records = {(n.lower(), kind): text for (n, kind), text in records.items()}
        names.records.update(
            {
                (n.replace("mx", "MX").replace("example", "Example"), kind): text
                for (n, kind), text in records.items()
            }
        )
        async with await connect(server) as client:
            assert (await client.greet()).code == 250
    assert [session.host_name_dns for session in handler.sessions] == [name]


async def test_exempt_clients_are_not_looked_up() -> None:
    options = {"dnsbl": "a.example", "exempt": CLIENT, "rdns": True}
    async with name_server() as names, serving(names, **options) as server:
        listed(names, "a.example")
        async with await connect(server) as client:
            assert (await client.greet()).code == 250
        assert not [name for name, _ in names.asked if name.startswith("9.")]


@pytest.mark.parametrize("end", ["close", "reset", "stop"])
async def test_a_client_that_disconnects_during_dns_queries_frees_its_slot(end: str) -> None:
    async with name_server() as names:
        async with serving(names, dnsbl="a.example", dns_timeout=0.5) as server:
            names.records["9.0.0.127.a.example", "A"] = None
            client = await connect(server)
            await until(lambda: ("9.0.0.127.a.example", "A") in names.asked)
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


async def test_the_greet_pause_begins_after_the_dns_queries() -> None:
    async with name_server() as names, serving(names, rdns=True, greet_pause=0.1) as server:
        async with await connect(server) as client:
            assert (await client.greet()).code == 250
            assert (await client.deliver()).code == 250


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("dnsbl", "a b"), ("dnsbl", "=1"), ("dnsbl", "a.example=x"), ("dnsbl", "a.example=99999"),
        ("dnsbl", "a.example="), ("dnsbl", "a.example=1=1"), ("dnsbl", "a.example=127.0.0.2="),
        ("dnsbl", "a.example=127.0.0"), ("dnsbl", "a.example=127.0.0.256"),
        ("dnsbl", "a.example=127.0.0.[4..2]"), ("dnsbl", "a.example=127.0.0.[2..3..4]"),
        ("dnsbl", "a.example=127.0.0.[]"), ("dnsbl", "a.example=127.0.0.2=1=1"),
        ("dnsbl", "a.example=127.0.0.1"), ("dnsbl", "a.example=127.255.255.[252..255]"),
        ("dnsbl", "a.example=192.0.2.1"), ("dnsbl", "a..example"), ("dnsbl", "a" * 60 + "!"),
        ("dnsbl", "x" * 200), ("dnsbl", "-a.example"), ("dns_server", "localhost"),
        ("dns_server", "192.0.2.1:x"), ("dns_server", "[::1"), ("dnsbl_threshold", 0),
        ("dns_timeout", "0s"),
    ],
)  # fmt: skip
def test_an_invalid_setting_is_named_in_the_error(setting: str, value: Any) -> None:
    with pytest.raises(SmtpdForkError, match=setting) as caught:
        config = Config.build({setting: value})
        read_entries(config.dnsbl)
        parse_nameserver(config.dns_server)
    assert repr(value) in str(caught.value)
