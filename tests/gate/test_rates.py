"""Rates, without sockets and with a simulated clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from support.gates import Clock, new_gate, refusal

from smtpd_fork import Refusal, Ticket
from smtpd_fork.gate.client import Client
from smtpd_fork.gate.rules import Counts, Rate, RateRule


def test_a_rate_allows_a_burst_and_then_single_sessions() -> None:
    clock = Clock()
    gate = new_gate(clock, rate="3/m")
    for _ in range(3):
        assert isinstance(gate.admit("192.0.2.1"), Ticket)
    verdict = gate.admit("192.0.2.1")
    assert refusal(verdict) == ("rate", "192.0.2.1", 4, 3)
    assert isinstance(verdict, Refusal)
    assert b"Too many new connections from 192.0.2.1" in verdict.reply("mx")
    assert isinstance(gate.admit("192.0.2.2"), Ticket)
    clock.now += 19
    assert isinstance(gate.admit("192.0.2.1"), Refusal)
    clock.now += 1.1
    assert isinstance(gate.admit("192.0.2.1"), Ticket)
    assert isinstance(gate.admit("192.0.2.1"), Refusal)
    clock.now += 60
    assert [isinstance(gate.admit("192.0.2.1"), Ticket) for _ in range(4)] == [True] * 3 + [False]


def test_a_client_refused_for_another_reason_does_not_use_up_its_rate() -> None:
    clock = Clock()
    gate = new_gate(clock, rate="3/m", max_from_ip=1)
    ticket = gate.admit("192.0.2.1")
    assert isinstance(ticket, Ticket)
    for _ in range(10):
        assert refusal(gate.admit("192.0.2.1"))[0] == "max_from_ip"
    ticket.release()
    assert isinstance(gate.admit("192.0.2.1"), Ticket)


def test_a_rate_per_network_is_shared_by_its_clients() -> None:
    gate = new_gate(Clock(), rate_net=["2/m/24", "1/m/48"])
    assert isinstance(gate.admit("192.0.2.1"), Ticket)
    assert isinstance(gate.admit("192.0.2.2"), Ticket)
    assert refusal(gate.admit("192.0.2.3")) == ("rate_net", "192.0.2.0/24", 3, 2)
    assert isinstance(gate.admit("192.0.3.1"), Ticket)
    assert isinstance(gate.admit("2001:db8::1"), Ticket)
    assert refusal(gate.admit("2001:db8:0:1::1")) == ("rate_net", "2001:db8::/48", 2, 1)


def test_a_million_clients_need_bounded_memory_and_expire_without_a_scan() -> None:
    known = RateRule(Rate(5, 60.0), max_known=1000)
    for n in range(5000):
        known.arrived(Client(f"10.0.{n >> 8}.{n & 255}", 64), 0.0)
        assert len(known) <= 1000
    for n in range(1000):  # a minute later, each new one removes two
        known.arrived(Client(f"192.0.{n >> 8}.{n & 255}", 64), 100.0 + n)
    assert len(known) <= 14  # one is remembered for 12 seconds


@given(
    st.integers(1, 20),
    st.floats(0.5, 100),
    st.lists(st.floats(0, 30), min_size=1, max_size=80),
)
def test_no_interval_of_one_period_has_more_than_twice_the_rate(
    sessions: int, seconds: float, pauses: list[float]
) -> None:
    """A burst of N, and those that become due meanwhile: never more in any interval."""
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
