"""Networks that are denied at run time: refusals, explanations, ends, and the maximum."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gates import Clock, new_gate

from smtpd_fork import Config, Gate, Refusal, SettingError, Ticket
from smtpd_fork.gate import limits_of
from smtpd_fork.gate.denials import MAX_AUTOMATIC, MAX_DENIALS

if TYPE_CHECKING:
    from pathlib import Path


def is_denied(gate: Gate, host: str) -> bool:
    verdict = gate.admit(host)
    if isinstance(verdict, Ticket):
        verdict.release()
        return False
    assert isinstance(verdict, Refusal)
    assert verdict.rule == "deny"
    return True


def explanation(gate: Gate, host: str) -> str:
    verdict = gate.admit(host)
    assert isinstance(verdict, Refusal)
    return str(gate.explain(gate.refuse(verdict).id))


def test_a_denial_applies_in_addition_to_the_lists_until_it_is_removed() -> None:
    gate = new_gate(deny="198.51.100.7")
    assert not is_denied(gate, "192.0.2.1")
    gate.denials.add("192.0.2.0/24", "Go away")
    verdict = gate.admit("192.0.2.1")
    assert isinstance(verdict, Refusal)
    assert verdict.reply("mx") == b"554 5.7.1 mx Go away\r\n"
    assert is_denied(gate, "198.51.100.7")
    assert not is_denied(gate, "192.0.3.1")
    assert gate.denials.remove("192.0.2.0/24")
    assert not gate.denials.remove("192.0.2.0/24")
    assert not is_denied(gate, "192.0.2.1")


def test_the_smallest_network_of_lists_and_denials_decides() -> None:
    gate = new_gate(allow=["192.0.2.128/25", "198.51.100.7"])
    gate.denials.add("192.0.2.0/24")
    gate.denials.add("198.51.100.7")
    gate.denials.add("192.0.2.192/26")
    assert is_denied(gate, "192.0.2.1")
    assert not is_denied(gate, "192.0.2.129")
    assert is_denied(gate, "192.0.2.193")
    assert is_denied(gate, "198.51.100.7"), "of equal networks the denial counts"


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("::/0", "2001:db8::1", "192.0.2.1"),
        ("0.0.0.0/0", "192.0.2.1", "2001:db8::1"),
        ("2001:db8::/32", "2001:db8:5::1", "2001:db9::1"),
        ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
        ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2"),
    ],
)
def test_networks_of_both_families_are_denied(network: str, inside: str, outside: str) -> None:
    gate = new_gate()
    gate.denials.add(network)
    assert is_denied(gate, inside)
    assert not is_denied(gate, outside)


def test_a_denial_ends_with_its_time() -> None:
    clock = Clock()
    gate = new_gate(clock)
    gate.denials.add("192.0.2.1", seconds=60)
    gate.denials.add("192.0.2.2", seconds=120)
    gate.denials.add("192.0.2.3")
    clock.now += 59
    assert is_denied(gate, "192.0.2.1")
    assert [left for _, left in gate.denials.page()] == [1, 61, float("inf")]
    clock.now += 1
    assert not is_denied(gate, "192.0.2.1")
    assert is_denied(gate, "192.0.2.2")
    clock.now += 60
    assert not is_denied(gate, "192.0.2.2")
    assert is_denied(gate, "192.0.2.3")
    assert len(gate.denials) == 1


def test_a_second_denial_of_a_network_replaces_text_and_time() -> None:
    clock = Clock()
    gate = new_gate(clock)
    gate.denials.add("192.0.2.1", "One", seconds=60)
    gate.denials.add("192.0.2.1", "Two")
    clock.now += 60
    assert [each.text for each, _ in gate.denials.page()] == ["Two"]
    assert is_denied(gate, "192.0.2.1")


def test_denials_survive_a_change_of_limits_and_do_not_end_open_sessions() -> None:
    gate = new_gate()
    ticket = gate.admit("192.0.2.1")
    assert isinstance(ticket, Ticket)
    gate.denials.add("192.0.2.1")
    gate.limits = limits_of(Config.build({"max_from_ip": 3}))
    assert is_denied(gate, "192.0.2.1")
    assert not ticket.released
    ticket.release()
    assert gate.clients == {}


def test_the_explanation_names_the_author_the_time_and_the_command_that_removes_it() -> None:
    gate = new_gate()
    gate.denials.add("192.0.2.0/24", by="uid 0, pid 7", since=0)
    text = explanation(gate, "192.0.2.1")
    assert "(denied at run time by uid 0, pid 7 at 1970-01-01 00:00:00 UTC)" in text
    assert text.endswith("; smtpd-fork undeny 192.0.2.0/24")


def test_the_explanation_names_the_line_of_a_list(tmp_path: Path) -> None:
    listed = tmp_path / "deny.list"
    listed.write_text("# bad ones\n\n192.0.2.0/24\n")
    gate = new_gate(deny=[str(listed), "198.51.100.7"])
    assert "refused 192.0.2.0/24: deny [" in explanation(gate, "192.0.2.1")
    assert f"({listed}, line 3); remove the network" in explanation(gate, "192.0.2.1")
    assert "(--deny 198.51.100.7); " in explanation(gate, "198.51.100.7")


def test_the_text_is_one_line_of_printable_ascii() -> None:
    gate = new_gate()
    assert gate.denials.add("192.0.2.1", " a\r\n554 b\x1b\xe9 ").text == "a??554 b??"


@pytest.mark.parametrize(
    ("network", "text", "seconds", "reason"),
    [
        ("nonsense", "", None, "not a network"),
        ("192.0.2.1/24", "", None, "host bits"),
        ("", "", None, "not a network"),
        ("192.0.2.1", "x" * 201, None, "has 201 characters, at most 200 are allowed"),
        ("192.0.2.1", "", 0, "must be more than 0"),
        ("192.0.2.1", "", -1, "must be more than 0"),
        ("192.0.2.1", "", float("nan"), "must be more than 0"),
        ("192.0.2.1", "", 367 * 86400, "at most 31622400 s"),
        ("192.0.2.1", "", "1h", "'1h': the time in seconds must be"),
        (None, "", None, "None: expected a network or an address as a string, not NoneType"),
    ],
)
def test_an_invalid_denial_is_an_error_and_changes_nothing(
    network: Any, text: str, seconds: Any, reason: str
) -> None:
    gate = new_gate()
    with pytest.raises(SettingError, match=reason):
        gate.denials.add(network, text, seconds=seconds)
    assert len(gate.denials) == 0


def test_ten_thousand_networks_can_be_denied_and_no_more() -> None:
    clock = Clock()
    gate = new_gate(clock)
    began = time.process_time()
    for number in range(MAX_DENIALS):
        gate.denials.add(f"10.{number >> 8}.{number & 255}.0/24", seconds=1 + number)
        is_denied(gate, "10.0.0.1")
    assert time.process_time() - began < 5
    with pytest.raises(SettingError, match="10000 networks are denied"):
        gate.denials.add("192.0.2.1")
    gate.denials.add("10.0.0.0/24", seconds=9)  # an existing denial may be replaced
    clock.now += 1
    assert len(gate.denials) == MAX_DENIALS
    clock.now += 1
    gate.denials.add("192.0.2.1")
    assert is_denied(gate, "192.0.2.1")
    seen = gate.denials.page(limit=10)
    assert [each.number for each, _ in gate.denials.page(limit=1, after=seen[8][0].number)] == [
        seen[9][0].number
    ]


def test_an_administrator_can_add_denials_when_automatic_ones_have_reached_their_maximum() -> None:
    gate = new_gate()
    for number in range(MAX_AUTOMATIC):
        gate.denials.add(f"10.0.{number >> 8}.{number & 255}", seconds=60, automatic=True)
    with pytest.raises(SettingError, match="9000 networks are denied"):
        gate.denials.add("192.0.2.1", seconds=60, automatic=True)
    gate.denials.add("10.0.0.1", seconds=90, automatic=True)  # an existing denial is extended
    gate.denials.add("192.0.2.1")
    assert is_denied(gate, "192.0.2.1")


def test_an_automatic_denial_does_not_replace_one_that_lasts_longer() -> None:
    gate = new_gate(Clock())
    for network, seconds in (("192.0.2.1", 3600), ("192.0.2.2", None), ("192.0.2.3", 10)):
        gate.denials.add(network, "Spam", seconds=seconds)
        gate.denials.add(network, "Early", seconds=60, automatic=True)
    assert [each.text for each, _ in gate.denials.page()] == ["Spam", "Spam", "Early"]
    assert [left for _, left in gate.denials.page()] == [3600, float("inf"), 60]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 5), st.sampled_from([None, 1, 3, 8]), st.integers(0, 4), st.booleans()
        )
    )
)
def test_a_network_is_denied_until_its_last_denial_ends(
    steps: list[tuple[int, int | None, int, bool]],
) -> None:
    clock = Clock()
    gate, ends = new_gate(clock), dict[str, float]()
    for number, seconds, passed, removed in steps:
        network = f"192.0.2.{number}"
        gate.denials.add(network, seconds=seconds)
        ends[network] = clock.now + (seconds or float("inf"))
        if removed:
            assert gate.denials.remove(network)
            del ends[network]
        clock.now += passed
        ends = {each: end for each, end in ends.items() if end > clock.now}
        assert {each.written for each, _ in gate.denials.page()} == ends.keys()
        assert is_denied(gate, network) == (network in ends)


def test_memory_is_bounded_when_one_network_is_denied_repeatedly() -> None:
    gate = new_gate()
    for _ in range(3 * MAX_DENIALS):
        gate.denials.add("192.0.2.1", seconds=3600)
    assert len(gate.denials._ends) <= 2 * MAX_DENIALS + 1
    assert len(gate.denials) == 1
