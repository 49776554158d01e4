"""The gate, without sockets and with a simulated clock."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from smtpd_fork import Full, Gate, Limits, Refusal, SettingError, Ticket
from smtpd_fork.peer_address import describe, host_of, plain_peer


def admitted(gate: Gate, peer: str) -> Ticket:
    verdict = gate.admit(peer)
    assert isinstance(verdict, Ticket)
    return verdict


def test_the_gate_is_full_at_its_limit_and_admits_again_after_a_release() -> None:
    gate = Gate(limit_connections=2, max_from_ip=0)
    first, _ = admitted(gate, "192.0.2.1"), admitted(gate, "192.0.2.2")
    assert gate.full
    assert gate.admit("192.0.2.3") == Full(3, 2)
    first.release()
    assert isinstance(gate.admit("192.0.2.3"), Ticket)


def test_a_client_over_its_limit_is_refused_and_others_are_admitted() -> None:
    gate = Gate(limit_connections=10, max_from_ip=5)
    for _ in range(5):
        admitted(gate, "192.0.2.1")
    refusal = gate.admit("192.0.2.1")
    assert refusal == Refusal("max_from_ip", "192.0.2.1", 6, 5)
    assert "6 > 5" in str(refusal)
    assert isinstance(gate.admit("192.0.2.2"), Ticket)


def test_the_limit_per_client_does_not_override_the_total_limit() -> None:
    gate = Gate(limit_connections=3, max_from_ip=50)
    for _ in range(3):
        admitted(gate, "192.0.2.1")
    assert isinstance(gate.admit("192.0.2.1"), Full)
    assert gate.count == 3


def test_zero_means_no_limit_per_client() -> None:
    gate = Gate(limit_connections=1000, max_from_ip=0)
    for _ in range(1000):
        admitted(gate, "192.0.2.1")
    assert gate.count_from("192.0.2.1") == 1000


def test_a_ticket_counts_once_however_often_it_is_released() -> None:
    gate = Gate()
    ticket = admitted(gate, "192.0.2.1")
    other = admitted(gate, "192.0.2.1")
    ticket.release()
    ticket.release()
    assert gate.count == 1
    assert (ticket.released, other.released) == (True, False)


def test_a_ticket_is_a_context_manager() -> None:
    gate = Gate()
    with admitted(gate, "192.0.2.1"):
        assert gate.count == 1
    assert gate.count == 0


def test_a_ticket_has_the_client_and_the_time_of_admission() -> None:
    gate = Gate(clock=lambda: 12.5)
    ticket = gate.admit(("::ffff:192.0.2.1", 4025, 0, 0))
    assert isinstance(ticket, Ticket)
    assert (ticket.key, ticket.since) == ("192.0.2.1", 12.5)
    assert ticket.peer == ("::ffff:192.0.2.1", 4025, 0, 0)


def test_mapped_addresses_are_counted_as_ipv4_addresses() -> None:
    gate = Gate(max_from_ip=2)
    admitted(gate, "192.0.2.1")
    gate.admit(("::ffff:192.0.2.1", 1, 0, 0))
    assert isinstance(gate.admit("::FFFF:c000:0201"), Refusal)
    assert gate.clients == {"192.0.2.1": 2}


def test_clients_of_a_unix_socket_have_no_key_and_are_counted_in_the_total() -> None:
    gate = Gate(limit_connections=3, max_from_ip=1)
    for _ in range(3):
        assert isinstance(gate.admit(""), Ticket)
    assert isinstance(gate.admit(""), Full)
    assert gate.clients == {}


def test_clients_without_a_session_are_removed_from_the_counts() -> None:
    gate = Gate()
    admitted(gate, "192.0.2.1").release()
    assert gate.clients == {}
    assert gate._counts.by_client == {}


def test_limits_can_change_at_run_time() -> None:
    gate = Gate(limit_connections=1, max_from_ip=1)
    held = admitted(gate, "192.0.2.1")
    gate.limits = Limits(limit_connections=2, max_from_ip=2)
    admitted(gate, "192.0.2.1")
    gate.limits = Limits(limit_connections=1, max_from_ip=1)
    assert gate.count == 2  # open sessions continue
    held.release()
    assert gate.full


def test_a_paused_gate_admits_no_client_until_it_resumes() -> None:
    gate = Gate()
    gate.pause()
    assert gate.full
    verdict = gate.admit("192.0.2.1")
    assert isinstance(verdict, Full)
    assert "paused" in str(verdict)
    gate.resume()
    assert isinstance(gate.admit("192.0.2.1"), Ticket)


@pytest.mark.parametrize(("connections", "per_ip"), [(0, 1), (-1, 1), (1, -1)])
def test_limits_out_of_range_are_an_error(connections: int, per_ip: int) -> None:
    with pytest.raises(SettingError, match=f"{connections}|{per_ip}: expected"):
        Gate(limit_connections=connections, max_from_ip=per_ip)


# -- waiting -----------------------------------------------------------------------------------


def test_a_callback_is_called_once_as_soon_as_a_slot_is_free() -> None:
    gate = Gate(limit_connections=1)
    calls: list[str] = []
    ticket = admitted(gate, "192.0.2.1")
    gate.when_room(waiter := lambda: calls.append("room"))
    gate.when_room(waiter)
    assert calls == []
    ticket.release()
    assert calls == ["room"]
    admitted(gate, "192.0.2.1").release()
    assert calls == ["room"]


def test_a_callback_is_called_at_once_if_a_slot_is_free() -> None:
    calls: list[str] = []
    Gate().when_room(lambda: calls.append("room"))
    assert calls == ["room"]


@pytest.mark.parametrize("change", ["limits", "resume"])
def test_a_callback_is_called_when_a_change_of_the_gate_makes_a_slot_free(change: str) -> None:
    gate = Gate(limit_connections=1)
    admitted(gate, "192.0.2.1")
    calls: list[str] = []
    if change == "resume":
        gate.limits = Limits(limit_connections=2)
        gate.pause()
    gate.when_room(lambda: calls.append("room"))
    assert calls == []
    if change == "resume":
        gate.resume()
    else:
        gate.limits = Limits(limit_connections=2)
    assert calls == ["room"]


def test_a_cancelled_callback_is_not_called() -> None:
    gate = Gate(limit_connections=1)
    ticket = admitted(gate, "192.0.2.1")
    calls: list[str] = []
    gate.when_room(waiter := lambda: calls.append("room"))
    gate.forget(waiter)
    gate.forget(waiter)
    ticket.release()
    assert calls == []


def test_a_callback_that_fails_does_not_make_the_release_fail(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = Gate(limit_connections=1)
    ticket = admitted(gate, "192.0.2.1")
    calls: list[str] = []

    def fail() -> None:
        raise RuntimeError

    gate.when_room(fail)
    gate.when_room(lambda: calls.append("room"))
    ticket.release()
    assert gate.count == 0
    assert calls == ["room"]
    assert "a callback of when_room failed" in caplog.text


def test_threads_that_share_a_gate_never_exceed_a_limit_and_leave_no_count() -> None:
    gate = Gate(limit_connections=7, max_from_ip=3)
    seen: list[int] = []
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        for turn in range(2000):
            verdict = gate.admit(f"192.0.2.{(number + turn) % 4}")
            if isinstance(verdict, Ticket):
                seen.append(max([gate.count, *gate.clients.values()]))
                verdict.release()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(seen) <= 7
    assert gate.count == 0
    assert gate.clients == {}


# -- any order of calls ------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """The counts agree with a list of the tickets, never exceed a limit, and are 0 at the end."""

    tickets = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate(limit_connections=5, max_from_ip=2)
        self.held: list[Ticket] = []
        self.highest_limit = 5

    @rule(
        target=tickets, host=st.sampled_from(["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", ""])
    )
    def admit(self, host: str) -> Ticket | None:
        limits, before = self.gate.limits, self.gate.count
        mine = self.gate.count_from(host)
        verdict = self.gate.admit(host)
        if not isinstance(verdict, Ticket):
            assert self.gate.count == before
            over = 0 < limits.max_from_ip <= mine
            assert isinstance(verdict, Refusal) == (over and host != "")
            assert isinstance(verdict, Refusal) or before >= limits.limit_connections
            return None
        assert before < limits.limit_connections
        assert host == "" or not limits.max_from_ip or mine < limits.max_from_ip
        self.held.append(verdict)
        return verdict

    @rule(ticket=tickets)
    def release(self, ticket: Ticket | None) -> None:
        if ticket is not None:
            ticket.release()
            if ticket in self.held:
                self.held.remove(ticket)

    @rule(ticket=consumes(tickets))
    def release_for_good(self, ticket: Ticket | None) -> None:
        self.release(ticket)

    @rule(connections=st.integers(1, 8), per_ip=st.integers(0, 4))
    def change_limits(self, connections: int, per_ip: int) -> None:
        self.gate.limits = Limits(limit_connections=connections, max_from_ip=per_ip)

    @invariant()
    def counts_are_true(self) -> None:
        assert self.gate.count == len(self.held)
        by_client: dict[str, int] = {}
        for ticket in self.held:
            if ticket.key is not None:
                by_client[ticket.key] = by_client.get(ticket.key, 0) + 1
        assert self.gate.clients == by_client

    def teardown(self) -> None:
        for ticket in self.held:
            ticket.release()
        assert self.gate.count == 0
        assert self.gate.clients == {}


TestAnyOrder = AnyOrder.TestCase


# -- peers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "key"),
    [
        (("192.0.2.1", 25), "192.0.2.1"),
        (("::ffff:192.0.2.1", 25, 0, 0), "192.0.2.1"),
        (("2001:db8::1", 25, 0, 0), "2001:db8::1"),
        (("fe80::1%eth0", 25, 0, 2), "fe80::1"),
        ("2001:0DB8:0::1", "2001:db8::1"),
        ("::1", "::1"),
        ("a name: no address", "a name: no address"),
        ("", None),
        (None, None),
    ],
)
def test_a_peer_is_counted_by_its_normal_form(peer: object, key: str | None) -> None:
    assert host_of(peer) == key  # type: ignore[arg-type]  # of any kind, on purpose


@given(st.ip_addresses(v=4))
def test_every_mapped_address_is_its_ipv4_address(address: object) -> None:
    assert host_of(f"::ffff:{address}") == str(address)


@given(st.ip_addresses(v=6))
def test_a_key_is_stable(address: object) -> None:
    key = host_of(str(address))
    assert host_of(key) == key


def test_a_peer_is_described_in_the_usual_notation() -> None:
    assert describe(("::ffff:192.0.2.1", 25, 0, 0)) == "192.0.2.1:25"
    assert describe(("2001:db8::1", 25, 0, 0)) == "[2001:db8::1]:25"
    assert describe("") == "unix"
    assert plain_peer(("::ffff:192.0.2.1", 25, 0, 0)) == ("192.0.2.1", 25)
    assert plain_peer(("2001:db8::1", 25, 0, 0)) == ("2001:db8::1", 25, 0, 0)
