"""The gate's rules, without a socket and with a clock of their own."""

from __future__ import annotations

import os
import time
from ipaddress import IPv4Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from smtpd_fork import Config, Full, Gate, Refusal, SmtpdForkError, Ticket
from smtpd_fork.gate import Limits, limits_of
from smtpd_fork.gate.client import Client, network_text
from smtpd_fork.gate.networks import Network, NetworkTable, number_of
from smtpd_fork.gate.rules import Counts, Rate, RateRule

if TYPE_CHECKING:
    from pathlib import Path


def gate(clock: Any = time.monotonic, **options: Any) -> Gate:
    options.setdefault("max_from_ip", 0)
    return Gate(limits=limits_of(Config.build(options)), clock=clock)


def refusal(verdict: object) -> tuple[str, str, int, int]:
    assert isinstance(verdict, Refusal), verdict
    return verdict.rule, verdict.key, verdict.count, verdict.limit


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# -- sources and networks ------------------------------------------------------------------------


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
    (network_rule,) = door._rules
    assert len(network_rule._counts) == 100  # type: ignore[attr-defined]  # the rule's own
    for ticket in tickets:
        assert isinstance(ticket, Ticket)
        ticket.release()
    assert network_rule._counts == {}  # type: ignore[attr-defined]  # as above


@given(
    nets=st.lists(
        st.one_of(
            st.ip_addresses(v=4).flatmap(lambda a: st.integers(0, 32).map(lambda p: f"{a}/{p}")),
            st.ip_addresses(v=6).flatmap(lambda a: st.integers(0, 128).map(lambda p: f"{a}/{p}")),
            st.integers(0, 7).flatmap(
                lambda n: st.integers(24, 32).map(lambda p: f"192.0.2.{n * 32}/{p}")
            ),
        ),
        max_size=12,
    ),
    hosts=st.lists(
        st.one_of(st.ip_addresses(), st.integers(0, 255).map(lambda n: ip_address(f"192.0.2.{n}"))),
        min_size=1,
        max_size=10,
    ),
)
def test_the_smallest_network_around_an_address_is_found(nets: list[str], hosts: list[Any]) -> None:
    networks = [ip_network(net, strict=False) for net in nets]
    table = NetworkTable((Network.parse(str(net)), str(net)) for net in networks)
    for host in hosts:
        is_mapped = host.version == 6 and int(host) >> 32 == 0xFFFF
        mapped = IPv4Address(int(host) & 0xFFFFFFFF) if is_mapped else host
        around = [net for net in networks if net.version == mapped.version and mapped in net]
        smallest = max(around, key=lambda net: net.prefixlen, default=None)
        found = table.find(number_of(str(host)))
        assert (found and ip_network(found)) == smallest


@given(st.ip_addresses(), st.integers(0, 128))
def test_a_network_is_told_as_people_write_it(address: Any, bits: int) -> None:
    bits = max(bits, 96) if address.version == 4 else bits
    number = number_of(str(address))
    assert number is not None
    text = network_text(number, bits)
    assert number >> (128 - bits) == Network.parse(text).first >> (128 - bits)
    assert Network.parse(text).prefix == bits


def test_a_hundred_thousand_networks_are_looked_up_in_a_few_steps() -> None:
    table = NetworkTable((Network((0xFFFF << 32) + (n << 8), 120), n) for n in range(100_000))
    assert len(table) == 100_000
    assert table.find(number_of("0.0.5.77")) == 5
    assert table.find(number_of("1.134.159.1")) == 99_999
    assert table.find(number_of("1.134.160.1")) is None
    assert len(table._starts) <= 100_002  # one binary search in that: 17 steps


# -- rates ---------------------------------------------------------------------------------------


def test_a_rate_allows_a_burst_and_then_one_after_another() -> None:
    clock = Clock()
    door = gate(clock, rate="3/m")
    for _ in range(3):
        assert isinstance(door.admit("192.0.2.1"), Ticket)
    verdict = door.admit("192.0.2.1")
    assert refusal(verdict) == ("rate", "192.0.2.1", 4, 3)
    assert isinstance(verdict, Refusal)
    assert b"Too many new connections from 192.0.2.1" in verdict.reply("mx")
    assert isinstance(door.admit("192.0.2.2"), Ticket)
    clock.now += 19
    assert isinstance(door.admit("192.0.2.1"), Refusal)
    clock.now += 1.1
    assert isinstance(door.admit("192.0.2.1"), Ticket)
    assert isinstance(door.admit("192.0.2.1"), Refusal)
    clock.now += 60
    assert [isinstance(door.admit("192.0.2.1"), Ticket) for _ in range(4)] == [True] * 3 + [False]


def test_who_is_refused_for_another_reason_does_not_use_up_its_rate() -> None:
    clock = Clock()
    door = gate(clock, rate="3/m", max_from_ip=1)
    ticket = door.admit("192.0.2.1")
    assert isinstance(ticket, Ticket)
    for _ in range(10):
        assert refusal(door.admit("192.0.2.1"))[0] == "max_from_ip"
    ticket.release()
    assert isinstance(door.admit("192.0.2.1"), Ticket)


def test_a_rate_of_a_network_is_one_for_all_in_it() -> None:
    door = gate(Clock(), rate_net=["2/m/24", "1/m/48"])
    assert isinstance(door.admit("192.0.2.1"), Ticket)
    assert isinstance(door.admit("192.0.2.2"), Ticket)
    assert refusal(door.admit("192.0.2.3")) == ("rate_net", "192.0.2.0/24", 3, 2)
    assert isinstance(door.admit("192.0.3.1"), Ticket)
    assert isinstance(door.admit("2001:db8::1"), Ticket)
    assert refusal(door.admit("2001:db8:0:1::1")) == ("rate_net", "2001:db8::/48", 2, 1)


def test_a_million_sources_cost_bounded_memory_and_are_forgotten_without_a_sweep() -> None:
    known = RateRule(Rate(5, 60.0), max_known=1000)
    for n in range(5000):
        known.arrived(Client(f"10.0.{n >> 8}.{n & 255}", 64), 0.0)
        assert len(known) <= 1000
    for n in range(600):  # a minute later, each call forgets two
        known.arrived(Client("192.0.2.1", 64), 100.0 + n / 1000)
    assert len(known) == 1


@given(
    st.integers(1, 20),
    st.floats(0.5, 100),
    st.lists(st.floats(0, 30), min_size=1, max_size=80),
)
def test_no_time_of_the_period_sees_more_than_twice_the_rate(
    sessions: int, seconds: float, pauses: list[float]
) -> None:
    """A burst of all of them, and what has been saved up: never more in any window."""
    limited = RateRule(Rate(sessions, seconds))
    client, counts, now = Client("192.0.2.1", 64), Counts(), 0.0
    let_in: list[float] = []
    for pause in pauses:
        now += pause
        if limited.judge(client, counts, now) is None:
            limited.arrived(client, now)
            let_in.append(now)
    for start in let_in:
        assert sum(start <= when < start + seconds for when in let_in) <= 2 * sessions
    assert len(let_in) <= sessions + now * sessions / seconds + 1e-6


# -- allow, deny, exempt, reserve ----------------------------------------------------------------


def test_the_smallest_network_decides_and_the_lists_text_is_told(tmp_path: Path) -> None:
    listed = tmp_path / "deny.list"
    listed.write_text("# bad ones\n192.0.2.0/24 Go away, {key}  # whole\n\n2001:db8::/32\n")
    door = gate(deny=[str(listed), "198.51.100.7"], allow="192.0.2.128/25")
    verdict = door.admit("192.0.2.1")
    assert isinstance(verdict, Refusal)
    assert verdict.reply("mx") == b"554 5.7.1 mx Go away, 192.0.2.0/24\r\n"
    assert isinstance(door.admit("192.0.2.129"), Ticket)
    for host in ("2001:db8:5::1", "198.51.100.7"):
        verdict = door.admit(host)
        assert isinstance(verdict, Refusal)
        assert verdict.reply("mx") == b"554 5.7.1 mx Access denied\r\n"
    assert isinstance(door.admit("198.51.100.8"), Ticket)
    assert isinstance(door.admit(""), Ticket)


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


# -- refusals, explained -------------------------------------------------------------------------


def test_a_refusal_has_an_id_in_its_reply_and_can_be_explained() -> None:
    door = gate(max_from_ip=1)
    door.admit("192.0.2.1")
    verdict = door.admit("192.0.2.1")
    assert isinstance(verdict, Refusal)
    told = door.refuse(verdict).reply("mx").decode()
    name = told.rpartition("[")[2].rstrip("]\r\n")
    explanation = door.explain(name)
    assert explanation is not None
    assert explanation.refusal is verdict
    assert "--max-from-ip" in str(explanation)
    assert str(explanation).startswith("refused 192.0.2.1: max_from_ip (2 > 1)")
    assert door.explain("no such id") is None


def test_every_rule_has_a_cure_and_is_counted() -> None:
    door = gate(
        Clock(), limit_connections=2, max_from_ip=1, max_from_net="1/24", rate="1/m",
        rate_net="1/m/16", deny="203.0.113.0/24", refuse_first=1, refuse_every=1000,
    )  # fmt: skip
    expected = {
        "192.0.2.1": "refuse_first", "203.0.113.1": "deny", "192.0.2.2": None,
        "192.0.2.3": "max_from_net", "192.0.3.1": "rate_net", "198.51.100.1": None,
        "198.51.101.1": "rate_net", "100.64.0.1": "limit_connections",
    }  # fmt: skip
    for host, by in expected.items():
        verdict = door.admit(host)
        if by is None:
            assert isinstance(verdict, Ticket)
            continue
        assert not isinstance(verdict, Ticket)
        explained = door.explain(door.refuse(verdict).id)
        assert explained is not None
        assert (explained.refusal.rule, bool(explained.cure)) == (by, True)
    stats = door.stats()
    assert stats["admitted"] == 2
    assert stats["refused"] == 6
    assert stats["refused_rate_net"] == 2


def test_the_last_thousand_refusals_are_remembered() -> None:
    door = gate(max_from_ip=1)
    door.admit("192.0.2.1")
    names = []
    for _ in range(1100):
        verdict = door.admit("192.0.2.1")
        assert isinstance(verdict, Refusal)
        names.append(door.refuse(verdict).id)
    assert len(set(names)) == 1100
    assert [door.explain(name) is not None for name in names] == [False] * 100 + [True] * 1000


# -- what cannot be read -------------------------------------------------------------------------


@pytest.mark.parametrize(("setting", "value", "reason"), [
    ("max_from_net", "5", "N/PREFIX"), ("max_from_net", "0/24", "at least 1"),
    ("max_from_net", "5/129", "prefix"), ("max_from_net", "5/4:8", "prefix"),
    ("max_from_net", "x/24", "N/PREFIX"), ("max_from_net", "5/", "prefix"),
    ("rate", "5", "N/PERIOD"), ("rate", "0/m", "N/PERIOD"), ("rate", "5/x", "duration"),
    ("rate", "5/0s", "more than 0"), ("rate", "5/", "N/PERIOD"), ("rate", "5/25h", "a day"),
    ("rate_net", "5/m", "N/PERIOD/PREFIX"), ("rate_net", "5/m/x", "prefix"),
    ("deny", "192.0.2.1/24", "host bits"), ("deny", "192.0.2.300", "address"),
    ("allow", "2001:db8::x", "address"), ("exempt", "/no/such/file", "cannot read the file"),
    ("reserve", 5, "nobody is exempt"), ("reserve", 5000, "less than"),
    ("ipv6_prefix", 0, ">= 1"), ("ipv6_prefix", 129, "<= 128"), ("refuse_first", -1, ">= 0"),
])  # fmt: skip
def test_what_cannot_be_read_is_named_with_its_reason(
    setting: str, value: object, reason: str
) -> None:
    with pytest.raises(SmtpdForkError, match=setting) as caught:
        limits_of(Config.build({setting: value, "limit_connections": 100}))
    assert reason in str(caught.value)
    assert repr(value) in str(caught.value)


def test_a_line_of_a_file_is_named_with_its_number(tmp_path: Path) -> None:
    listed = tmp_path / "deny.list"
    listed.write_text("192.0.2.0/24 fine\n\n192.0.2.0/33 not so\n")
    with pytest.raises(SmtpdForkError, match=r"deny .*deny\.list line 3: .*192\.0\.2\.0/33"):
        limits_of(Config.build({"deny": str(listed)}))


def test_a_list_that_is_no_file_is_not_read_for_ever(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(SmtpdForkError, match=r"deny .* is no regular file"):
            limits_of(Config.build({"deny": f"{tmp_path}/{name}"}))


@settings(max_examples=300)
@given(st.text(max_size=12))
def test_whatever_is_written_is_a_setting_or_a_named_fault(text: str) -> None:
    for setting in ("max_from_net", "rate", "rate_net", "allow", "exempt"):
        try:
            limits_of(Config.build({setting: text}))
        except SmtpdForkError as error:
            assert setting in str(error)  # noqa: PT017 - it need not be raised


# -- any order of things -------------------------------------------------------------------------

HOSTS = ["192.0.2.1", "192.0.2.2", "192.0.3.1", "2001:db8::1", "2001:db8:0:1::1", "10.0.0.1", ""]
LIMITS = [
    {},
    {"max_from_ip": 1, "ipv6_prefix": 128},
    {"max_from_ip": 2, "max_from_net": ["2/24", "3/48"]},
    {"max_from_net": ["2/16"], "exempt": "10.0.0.0/8", "reserve": 1},
    {"fair_share": True, "rate": "3/10s", "rate_net": "4/10s/24"},
    {"deny": "192.0.2.2", "refuse_every": 3, "exempt": "2001:db8::/32"},
]


class AnyOrder(RuleBasedStateMachine):
    """Counts are true, under no limit when somebody comes in, and 0 in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.gate = gate(self.clock, limit_connections=6)
        self.held: list[Ticket] = []

    @rule(host=st.sampled_from(HOSTS))
    def admit(self, host: str) -> None:
        before, limits = self.gate.count, self.gate.limits
        verdict = self.gate.admit(host)
        if isinstance(verdict, Ticket):
            self.held.append(verdict)
            assert before < limits.limit_connections
        else:
            assert self.gate.count == before
            self.gate.refuse(verdict)

    @rule(index=st.integers(0, 10), host=st.sampled_from(HOSTS))
    def identify(self, index: int, host: str) -> None:
        """A PROXY header tells who somebody is that came in without an address."""
        unknown = [ticket for ticket in self.held if ticket.key is None]
        if unknown:
            ticket = unknown[index % len(unknown)]
            before = self.gate.count, self.gate.sources
            if self.gate.identify(ticket, host) is not None:
                assert (self.gate.count, self.gate.sources) == before
                ticket.release()
                self.held.remove(ticket)

    @rule(index=st.integers(0, 10))
    def release(self, index: int) -> None:
        if self.held:
            self.held.pop(index % len(self.held)).release()

    @rule(options=st.sampled_from(LIMITS), total=st.integers(2, 8))
    def reload(self, options: dict[str, Any], total: int) -> None:
        config = Config.build({"limit_connections": total, "max_from_ip": 0, **options})
        self.gate.limits = limits_of(config)

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def counts_are_true(self) -> None:
        assert self.gate.count == len(self.held)
        assert sum(self.gate.sources.values()) == sum(t.key is not None for t in self.held)
        assert all(count > 0 for count in self.gate.sources.values())
        for each in self.gate._rules:
            counts = getattr(each, "_counts", {})
            assert all(count > 0 for count in counts.values())

    def teardown(self) -> None:
        for ticket in self.held:
            ticket.release()
        assert self.gate.count == 0
        assert self.gate.sources == {}
        assert all(not getattr(each, "_counts", {}) for each in self.gate._rules)


TestAnyOrder = AnyOrder.TestCase


def test_limits_can_be_given_by_embedders_as_plain_data() -> None:
    door = Gate(limits=Limits(limit_connections=3, rates=(Rate(1, 60.0),)))
    assert isinstance(door.admit("192.0.2.1"), Ticket)
    assert isinstance(door.admit("192.0.2.1"), Refusal)
    with pytest.raises(ValueError, match="reserve must be less"):
        Limits(limit_connections=3, reserve=3)
