"""Clients that a proxy names: each replaces the previous one in every count."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from support.gates import new_gate

from smtpd_fork import Refusal, Ticket

PROXY = "192.0.2.1"


def proxy(gate: Any) -> Ticket:
    ticket = gate.admit(PROXY, proxy=True)
    assert isinstance(ticket, Ticket)
    return ticket


def test_a_refused_client_does_not_change_any_count() -> None:
    gate = new_gate(max_from_ip=1)
    inside, waiting = proxy(gate), proxy(gate)
    assert gate.identify(inside, "198.51.100.7") is None
    before = gate.clients
    assert before == {"198.51.100.7": 1, PROXY: 1}
    assert isinstance(gate.identify(waiting, "198.51.100.7"), Refusal)
    assert gate.clients == before
    assert (waiting.peer, waiting.client.proxy) == (PROXY, True)
    waiting.release()
    inside.release()
    assert (gate.clients, gate.count) == ({}, 0)


def test_a_proxy_uses_up_no_rate_of_its_network_once_it_has_named_a_client() -> None:
    gate = new_gate(rate_net="3/h/24")
    for _ in range(9):
        assert gate.identify(proxy(gate), "2001:db8::7") is None
    verdicts = [gate.admit("192.0.2.2") for _ in range(4)]
    assert [isinstance(each, Ticket) for each in verdicts] == [True, True, True, False]


def test_each_named_client_is_counted_in_its_rate() -> None:
    gate = new_gate(rate="2/h")
    ticket = proxy(gate)
    named = [gate.identify(ticket, "198.51.100.7") for _ in range(3)]
    assert [each is None for each in named] == [True, True, False]


def test_naming_a_client_for_a_released_ticket_has_no_effect() -> None:
    gate = new_gate(max_from_ip=1)
    ticket = proxy(gate)
    ticket.release()
    assert gate.identify(ticket, "198.51.100.7") is None
    assert (gate.clients, gate.count) == ({}, 0)


HOSTS = st.sampled_from(["198.51.100.7", "198.51.100.8", "2001:db8::7", "2001:db8::8", None])


@given(st.lists(st.tuples(st.integers(0, 3), HOSTS, st.booleans()), max_size=40))
def test_counts_agree_with_the_tickets_for_any_named_clients(steps: Any) -> None:
    gate = new_gate(max_from_ip=2, max_from_net=["3/24"], exempt=["198.51.100.8"])
    tickets = [proxy(gate) for _ in range(4)]
    for index, host, change in steps:
        gate.identify(tickets[index], host)
        if change:
            gate.limits = new_gate(
                max_from_ip=2, max_from_net=["3/24", "4/48"], ipv6_prefix=48
            ).limits
        counted: dict[str, int] = {}
        for ticket in tickets:
            if ticket.key is not None:
                counted[ticket.key] = counted.get(ticket.key, 0) + 1
        assert gate.clients == counted
    for ticket in tickets:
        ticket.release()
    assert (gate.clients, gate.count) == ({}, 0)
