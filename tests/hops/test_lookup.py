"""Lookup: the mail servers of a domain (RFC 5321 5.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.mail import a_mail
from support.nameserver import NameServer, name_server
from support.next_hop import a_hop, closing

from smtpd_fork.hops.address import parse_hop_addresses
from smtpd_fork.hops.errors import HopError
from smtpd_fork.hops.lookup import Lookup
from smtpd_fork.hops.target import Target
from smtpd_fork.listeners.resolver import parse_nameserver
from smtpd_fork.sinks.relay import Relay

if TYPE_CHECKING:
    from smtpd_fork.hops.lookup import Endpoint


async def found(
    server: NameServer, records: dict[tuple[str, str], str | None], *addresses: str
) -> list[Endpoint]:
    server.records = records
    parsed = parse_hop_addresses(list(addresses) or "mx:example.com", default_port=25)
    target = Target(parsed, "me.example", nameserver=parse_nameserver(server.address))
    return await Lookup(target).endpoints()


async def test_servers_are_in_the_order_of_their_preferences() -> None:
    async with name_server() as server:
        records: dict[tuple[str, str], str | None] = {
            ("example.com", "MX"): "20/second.example 10/first.example",
            ("first.example", "A"): "192.0.2.1 192.0.2.2",
            ("first.example", "AAAA"): "2001:db8::1",
            ("second.example", "A"): "192.0.2.3",
        }
        endpoints = [str(each) for each in await found(server, records)]
        assert set(endpoints[:2]) == {
            "192.0.2.1:25 (first.example)",
            "192.0.2.2:25 (first.example)",
        }
        assert endpoints[2:] == [
            "[2001:db8::1]:25 (first.example)",
            "192.0.2.3:25 (second.example)",
        ]


async def test_servers_of_one_preference_share_the_load() -> None:
    async with name_server() as server:
        records: dict[tuple[str, str], str | None] = {
            ("example.com", "MX"): "10/first.example 10/second.example",
            ("first.example", "A"): "192.0.2.1",
            ("second.example", "A"): "192.0.2.2",
        }
        orders = {str(await found(server, records)) for _ in range(64)}
        assert len(orders) == 2


async def test_a_domain_without_mx_is_its_own_server() -> None:
    async with name_server() as server:
        endpoints = await found(server, {("example.com", "A"): "192.0.2.1"}, "mx:example.com:2525")
        assert [str(each) for each in endpoints] == ["192.0.2.1:2525 (example.com)"]


async def test_a_domain_with_a_null_mx_accepts_no_mail() -> None:
    async with name_server() as server:
        with pytest.raises(HopError) as raised:
            await found(server, {("example.com", "MX"): "0/."})
        assert raised.value.reply[:10] == "556 5.1.10"


@pytest.mark.parametrize(
    "records",
    [
        {},
        {("example.com", "MX"): "SERVFAIL"},
        {("example.com", "MX"): "10/first.example"},
        {("example.com", "MX"): "10/first.example", ("first.example", "A"): "SERVFAIL"},
    ],
)
async def test_a_domain_without_servers_and_a_dns_failure_get_451(
    records: dict[tuple[str, str], str | None],
) -> None:
    async with name_server() as server:
        with pytest.raises(HopError) as raised:
            await found(server, records)
        assert raised.value.reply[:8] == "451 4.4."


async def test_an_unknown_domain_does_not_prevent_the_use_of_other_hops() -> None:
    async with name_server() as server:
        endpoints = await found(server, {}, "mx:example.com", "192.0.2.9")
        assert [str(each) for each in endpoints] == ["192.0.2.9:25"]


async def test_a_message_goes_to_the_server_that_the_dns_names() -> None:
    async with name_server() as server, a_hop() as hop:
        server.records = {
            ("example.com", "MX"): "10/first.example",
            ("first.example", "A"): "127.0.0.1",
        }
        relay = Relay(f"mx:example.com:{hop.port}", dns_server=server.address)
        async with closing(relay):
            assert (await relay.deliver(a_mail()))[0][:3] == "250"


async def test_all_messages_get_the_reply_for_a_null_mx() -> None:
    async with name_server() as server:
        server.records = {("example.com", "MX"): "0/."}
        async with closing(Relay("mx:example.com", dns_server=server.address)) as relay:
            for _ in range(2):
                assert str(await relay.deliver(a_mail()))[:10] == "556 5.1.10"
