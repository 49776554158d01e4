"""The gate's rules, without a socket and with a clock of their own."""

from __future__ import annotations

from support.gates import Clock, gate, refusal

from smtpd_fork import Config, Full, Refusal, Ticket
from smtpd_fork.gate import limits_of
from smtpd_fork.gate.gate import MAX_CLIENTS
from smtpd_fork.gate.rules import NetworkRule


def test_ipv6_is_counted_by_its_64_unless_told_otherwise() -> None:
    door = gate(max_from_ip=1)
    assert isinstance(door.admit("2001:db8::1"), Ticket)
    assert refusal(door.admit("2001:db8::ffff:2")) == ("max_from_ip", "2001:db8::/64", 2, 1)
    assert isinstance(door.admit("2001:db8:0:1::1"), Ticket)
    assert door.count_from("2001:db8::5") == 1
    each = gate(max_from_ip=1, ipv6_prefix=128)
    assert isinstance(each.admit("2001:db8::1"), Ticket)
    assert isinstance(each.admit("2001:db8::2"), Ticket)
    assert refusal(each.admit("2001:db8::2"))[1] == "2001:db8::2"


def test_a_ladder_of_networks_has_a_limit_on_each_rung() -> None:
    door = gate(max_from_net=["2/24", "3/16", "1/48", "2/6:32"])
    for host in ("192.0.2.1", "192.0.2.2", "192.0.3.1"):
        assert isinstance(door.admit(host), Ticket)
    assert refusal(door.admit("192.0.2.9")) == ("max_from_net", "192.0.2.0/24", 3, 2)
    assert refusal(door.admit("::ffff:192.0.77.1")) == ("max_from_net", "192.0.0.0/16", 4, 3)
    assert isinstance(door.admit("192.1.0.1"), Ticket)
    assert isinstance(door.admit("2001:db8:1::1"), Ticket)
    assert refusal(door.admit("2001:db8:1:9::1")) == ("max_from_net", "2001:db8:1::/48", 2, 1)
    assert isinstance(door.admit("2001:db8:2::1"), Ticket)
    assert refusal(door.admit("2001:db8:3::1")) == ("max_from_net", "2001:db8::/32", 3, 2)
    assert isinstance(door.admit(""), Ticket)  # a unix socket's client is of no network


def test_a_network_is_forgotten_when_its_last_session_has_ended() -> None:
    door = gate(max_from_net="5/24")
    tickets = [door.admit(f"192.0.{n}.1") for n in range(100)]
    (network_rule,) = door._rules.rules
    assert isinstance(network_rule, NetworkRule)
    assert len(network_rule._counts) == 100
    for ticket in tickets:
        assert isinstance(ticket, Ticket)
        ticket.release()
    assert network_rule._counts == {}


def test_exempt_clients_skip_what_is_about_sources_and_nothing_else() -> None:
    door = gate(
        Clock(), max_from_ip=1, max_from_net="1/24", rate="1/m", fair_share=True,
        exempt="192.0.2.0/24", deny="192.0.2.66", limit_connections=5,
    )  # fmt: skip
    assert refusal(door.admit("192.0.2.66"))[0] == "deny"
    for _ in range(5):
        assert isinstance(door.admit("192.0.2.1"), Ticket)
    assert isinstance(door.admit("192.0.2.1"), Full)


def test_the_last_places_are_for_exempt_clients_alone() -> None:
    door = gate(limit_connections=5, reserve=2, exempt="192.0.2.0/24")
    tickets = [door.admit("198.51.100.1") for _ in range(3)]
    told: list[str] = []
    assert door.admit("198.51.100.1") == Full(4, 3)
    assert (door.crowded, door.full) == (True, False)
    door.when_room(lambda: told.append("reserved"), reserved=True)
    door.when_room(lambda: told.append("anybody"))
    assert told == ["reserved"]
    assert isinstance(door.admit("192.0.2.1"), Ticket)
    assert isinstance(door.admit("192.0.2.1"), Ticket)
    assert door.admit("192.0.2.1") == Full(6, 5)
    assert door.full
    for ticket in tickets:
        assert isinstance(ticket, Ticket)
        ticket.release()
    assert told == ["reserved", "anybody"]


def test_a_fair_share_is_kept_only_while_room_is_short() -> None:
    door = gate(limit_connections=20, fair_share=True)
    for _ in range(15):
        assert isinstance(door.admit("192.0.2.1"), Ticket)
    assert refusal(door.admit("192.0.2.1")) == ("fair_share", "192.0.2.1", 16, 10)
    for _ in range(5):
        assert isinstance(door.admit("192.0.2.2"), Ticket)
    assert isinstance(door.admit("192.0.2.3"), Full)


def test_a_rehearsal_refuses_to_order() -> None:
    door = gate(refuse_first=2, refuse_every=3)
    assert [isinstance(door.admit("192.0.2.1"), Ticket) for _ in range(9)] == [
        *(False, False, True, True, False, True, True, False, True)
    ]


def test_a_reload_goes_on_with_what_was_rehearsed_and_rated() -> None:
    """Whoever is refused for coming too often is not let in by a reload, nor twice rehearsed."""
    options = {"refuse_first": 2, "rate": "1/m", "max_from_ip": 0}
    door = gate(Clock(), **options)
    assert isinstance(door.admit("192.0.2.1"), Refusal)
    door.limits = limits_of(Config.build(options))
    assert refusal(door.admit("192.0.2.1"))[:3] == ("refuse_first", "192.0.2.1", 2)
    assert isinstance(door.admit("192.0.2.1"), Ticket)
    door.limits = limits_of(Config.build(options))
    assert refusal(door.admit("192.0.2.1"))[0] == "rate"
    door.limits = limits_of(Config.build({**options, "rate": "2/m"}))
    assert isinstance(door.admit("192.0.2.1"), Ticket)


def test_what_is_known_of_a_host_is_looked_up_again_after_a_reload() -> None:
    door = gate(max_from_ip=1)
    assert isinstance(door.admit("192.0.2.1"), Ticket)
    assert isinstance(door.admit("192.0.2.1"), Refusal)
    door.limits = limits_of(Config.build({"max_from_ip": 1, "exempt": "192.0.2.0/24"}))
    assert isinstance(door.admit("192.0.2.1"), Ticket)
    door.limits = limits_of(Config.build({"deny": "192.0.2.0/24"}))
    assert refusal(door.admit("192.0.2.1"))[0] == "deny"
    assert door.sources == {"192.0.2.1": 2}


def test_no_more_hosts_are_known_at_once_than_there_is_room_for() -> None:
    door = gate(deny="10.0.0.5")
    for n in range(3 * MAX_CLIENTS):
        door.admit(("10.1.0.0", 25) if n % 2 else (f"10.0.{n >> 8}.{n & 255}", n))
        assert len(door._clients) <= MAX_CLIENTS
    assert refusal(door.admit("10.0.0.5"))[0] == "deny"
