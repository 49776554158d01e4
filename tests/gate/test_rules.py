"""The gate's rules, without sockets and with a simulated clock."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from support.gates import Clock, new_gate, refusal

from smtpd_fork import Config, Full, Gate, Refusal, Ticket
from smtpd_fork.gate import limits_of
from smtpd_fork.gate.rule_book import MAX_CLIENTS
from smtpd_fork.gate.rules import NetworkLimitRule

if TYPE_CHECKING:
    from collections.abc import Iterable


def test_an_ipv6_client_is_counted_by_its_64_by_default() -> None:
    gate = new_gate(max_from_ip=1)
    assert isinstance(gate.admit("2001:db8::1"), Ticket)
    assert refusal(gate.admit("2001:db8::ffff:2")) == ("max_from_ip", "2001:db8::/64", 2, 1)
    assert isinstance(gate.admit("2001:db8:0:1::1"), Ticket)
    assert gate.count_from("2001:db8::5") == 1
    each = new_gate(max_from_ip=1, ipv6_prefix=128)
    assert isinstance(each.admit("2001:db8::1"), Ticket)
    assert isinstance(each.admit("2001:db8::2"), Ticket)
    assert refusal(each.admit("2001:db8::2"))[1] == "2001:db8::2"


def test_networks_of_several_sizes_have_limits_of_their_own() -> None:
    gate = new_gate(max_from_net=["2/24", "3/16", "1/48", "2/6:32"])
    for host in ("192.0.2.1", "192.0.2.2", "192.0.3.1"):
        assert isinstance(gate.admit(host), Ticket)
    assert refusal(gate.admit("192.0.2.9")) == ("max_from_net", "192.0.2.0/24", 3, 2)
    assert refusal(gate.admit("::ffff:192.0.77.1")) == ("max_from_net", "192.0.0.0/16", 4, 3)
    assert isinstance(gate.admit("192.1.0.1"), Ticket)
    assert isinstance(gate.admit("2001:db8:1::1"), Ticket)
    assert refusal(gate.admit("2001:db8:1:9::1")) == ("max_from_net", "2001:db8:1::/48", 2, 1)
    assert isinstance(gate.admit("2001:db8:2::1"), Ticket)
    assert refusal(gate.admit("2001:db8:3::1")) == ("max_from_net", "2001:db8::/32", 3, 2)
    assert isinstance(gate.admit(""), Ticket)  # a client of a unix socket has no network


def fill(gate: Gate, hosts: Iterable[str]) -> int:
    """Admit *hosts* until the first is refused; return how many were admitted."""
    count = 0
    for host in hosts:
        if not isinstance(gate.admit(host), Ticket):
            break
        count += 1
    return count


def default_gate(**options: Any) -> Gate:
    """Return a gate with the daemon's default settings and *options*."""
    return Gate(limits=limits_of(Config.build({"limit_connections": 1000, **options})))


@pytest.mark.parametrize(
    ("attackers", "network"),
    [
        ([f"2001:db8:1:{n:x}::1" for n in range(20)], "2001:db8:1::/48"),
        ([f"2001:db8:1:{n:x}::1" for n in range(2000)], "2001:db8:1::/48"),
        ([f"192.0.2.{n}" for n in range(20)], "192.0.2.0/24"),
        ([f"::ffff:192.0.2.{n}" for n in range(256)], "192.0.2.0/24"),
    ],
)
def test_by_default_no_network_of_a_customer_gets_more_than_a_quarter(
    attackers: list[str], network: str
) -> None:
    gate = default_gate()
    assert fill(gate, attackers * 50) == 250
    assert refusal(gate.admit(attackers[1])) == ("max_from_net", network, 251, 250)
    for other in ("2001:db8:2::1", "192.0.3.1"):
        assert isinstance(gate.admit(other), Ticket)


@pytest.mark.parametrize(
    ("total", "share"), [(1, 1), (2, 1), (4, 1), (5, 2), (10, 3), (100, 25), (9999, 2500)]
)
def test_a_share_of_the_total_limit_is_rounded_up(total: int, share: int) -> None:
    gate = default_gate(limit_connections=total)
    assert fill(gate, [f"192.0.2.{n % 256}" for n in range(total + 1)]) == share


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.9",
        "::1",
        "172.17.0.1",
        "10.1.2.3",
        "192.168.7.7",
        "fd00::9",
        "fe80::1",
        "100.64.1.1",
    ],
)
def test_a_share_does_not_apply_to_local_networks(host: str) -> None:
    """A bridge's gateway or a proxy has the connections of all clients; -m applies to it."""
    assert fill(default_gate(max_from_ip=1000), [host] * 1001) == 1000
    assert fill(default_gate(), [host] * 1001) == 50


def test_a_numeric_limit_applies_to_local_networks_too() -> None:
    assert fill(default_gate(max_from_net="7/24", max_from_ip=0), ["127.0.0.1"] * 1000) == 7


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"max_from_net": "0"}, 1000),
        ({"max_from_net": "0", "max_from_ip": 60}, 256 * 60),
        ({"max_from_net": "10%/24"}, 100),
        ({"max_from_net": ["10%/24", "8%/16"]}, 80),
        ({"max_from_net": "300/24"}, 300),
        ({"max_from_ip": 400}, 400),  # what one of them may have
        ({"max_from_ip": 20}, 250),
        ({"max_from_ip": 0}, 1000),
    ],
)
def test_explicit_settings_override_the_default_shares(options: dict[str, Any], most: int) -> None:
    gate = default_gate(**options)
    assert fill(gate, [f"192.0.2.{n % 256}" for n in range(1001)]) == min(most, 1000)


def test_a_share_changes_with_the_total_limit() -> None:
    gate = default_gate()
    hosts = [f"192.0.2.{n % 256}" for n in range(1000)]
    assert fill(gate, hosts) == 250
    gate.limits = replace(gate.limits, limit_connections=2000)
    assert fill(gate, hosts) == 250
    assert refusal(gate.admit("192.0.2.1"))[2:] == (501, 500)


def test_a_network_is_removed_when_its_last_session_has_ended() -> None:
    gate = new_gate(max_from_net="5/24")
    tickets = [gate.admit(f"192.0.{n}.1") for n in range(100)]
    (network_rule,) = (each for each in gate._rules.rules if isinstance(each, NetworkLimitRule))
    assert len(network_rule._counts) == 100
    for ticket in tickets:
        assert isinstance(ticket, Ticket)
        ticket.release()
    assert network_rule._counts == {}


def test_exempt_clients_skip_the_limits_per_client_and_nothing_else() -> None:
    gate = new_gate(
        Clock(), max_from_ip=1, max_from_net="1/24", rate="1/m", fair_share=True,
        exempt="192.0.2.0/24", deny="192.0.2.66", limit_connections=5,
    )  # fmt: skip
    assert refusal(gate.admit("192.0.2.66"))[0] == "deny"
    for _ in range(5):
        assert isinstance(gate.admit("192.0.2.1"), Ticket)
    assert isinstance(gate.admit("192.0.2.1"), Full)


def test_the_last_slots_are_for_exempt_clients_only() -> None:
    gate = new_gate(limit_connections=5, reserve=2, exempt="192.0.2.0/24")
    tickets = [gate.admit("198.51.100.1") for _ in range(3)]
    calls: list[str] = []
    assert gate.admit("198.51.100.1") == Full(4, 3)
    assert (gate.slots.crowded, gate.full) == (True, False)
    gate.when_room(lambda: calls.append("reserved"), reserved=True)
    gate.when_room(lambda: calls.append("any"))
    assert calls == ["reserved"]
    assert isinstance(gate.admit("192.0.2.1"), Ticket)
    assert isinstance(gate.admit("192.0.2.1"), Ticket)
    assert gate.admit("192.0.2.1") == Full(6, 5)
    assert gate.full
    for ticket in tickets:
        assert isinstance(ticket, Ticket)
        ticket.release()
    assert calls == ["reserved", "any"]


def test_the_fair_share_applies_only_while_slots_are_short() -> None:
    gate = new_gate(limit_connections=20, fair_share=True)
    for _ in range(15):
        assert isinstance(gate.admit("192.0.2.1"), Ticket)
    assert refusal(gate.admit("192.0.2.1")) == ("fair_share", "192.0.2.1", 16, 10)
    for _ in range(5):
        assert isinstance(gate.admit("192.0.2.2"), Ticket)
    assert isinstance(gate.admit("192.0.2.3"), Full)


def test_refuse_first_and_refuse_every_refuse_the_first_clients_and_each_nth() -> None:
    gate = new_gate(refuse_first=2, refuse_every=3)
    assert [isinstance(gate.admit("192.0.2.1"), Ticket) for _ in range(9)] == [
        *(False, False, True, True, False, True, True, False, True)
    ]


def test_a_reload_keeps_the_counts_of_refuse_first_and_of_rates() -> None:
    """A reload neither admits a client that a rate refuses nor restarts refuse_first."""
    options = {"refuse_first": 2, "rate": "1/m", "max_from_ip": 0}
    gate = new_gate(Clock(), **options)
    assert isinstance(gate.admit("192.0.2.1"), Refusal)
    gate.limits = limits_of(Config.build(options))
    assert refusal(gate.admit("192.0.2.1"))[:3] == ("refuse_first", "192.0.2.1", 2)
    assert isinstance(gate.admit("192.0.2.1"), Ticket)
    gate.limits = limits_of(Config.build(options))
    assert refusal(gate.admit("192.0.2.1"))[0] == "rate"
    gate.limits = limits_of(Config.build({**options, "rate": "2/m"}))
    assert isinstance(gate.admit("192.0.2.1"), Ticket)


def test_a_reload_clears_the_cache_of_clients() -> None:
    gate = new_gate(max_from_ip=1)
    assert isinstance(gate.admit("192.0.2.1"), Ticket)
    assert isinstance(gate.admit("192.0.2.1"), Refusal)
    gate.limits = limits_of(Config.build({"max_from_ip": 1, "exempt": "192.0.2.0/24"}))
    assert isinstance(gate.admit("192.0.2.1"), Ticket)
    gate.limits = limits_of(Config.build({"deny": "192.0.2.0/24"}))
    assert refusal(gate.admit("192.0.2.1"))[0] == "deny"
    assert gate.clients == {"192.0.2.1": 2}


def test_the_cache_of_clients_is_bounded() -> None:
    gate = new_gate(deny="10.0.0.5")
    for n in range(3 * MAX_CLIENTS):
        gate.admit(("10.1.0.0", 25) if n % 2 else (f"10.0.{n >> 8}.{n & 255}", n))
        assert len(gate._rules._clients) <= MAX_CLIENTS
    assert refusal(gate.admit("10.0.0.5"))[0] == "deny"
