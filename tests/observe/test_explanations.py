"""Explanations of refusals: ids, advice, and counts by rule."""

from __future__ import annotations

from support.gates import Clock, new_gate

from smtpd_fork import Refusal, Ticket


def test_a_refusal_has_an_id_in_its_reply_and_can_be_explained() -> None:
    gate = new_gate(max_from_ip=1)
    gate.admit("192.0.2.1")
    verdict = gate.admit("192.0.2.1")
    assert isinstance(verdict, Refusal)
    text = gate.refuse(verdict).reply("mx").decode()
    name = text.rpartition("[")[2].rstrip("]\r\n")
    explanation = gate.explain(name)
    assert explanation is not None
    assert explanation.refusal is verdict
    assert "--max-from-ip" in str(explanation)
    assert str(explanation).startswith("refused 192.0.2.1: max_from_ip (2 > 1)")
    assert gate.explain("no such id") is None


def test_every_rule_has_a_cure_and_is_counted() -> None:
    gate = new_gate(
        Clock(), limit_connections=2, max_from_ip=1, max_from_net="1/24", rate="1/m",
        rate_net="1/m/16", deny="203.0.113.0/24", refuse_first=1, refuse_every=1000,
    )  # fmt: skip
    expected = {
        "192.0.2.1": "refuse_first", "203.0.113.1": "deny", "192.0.2.2": None,
        "192.0.2.3": "max_from_net", "192.0.3.1": "rate_net", "198.51.100.1": None,
        "198.51.101.1": "rate_net", "100.64.0.1": "limit_connections",
    }  # fmt: skip
    for host, by in expected.items():
        verdict = gate.admit(host)
        if by is None:
            assert isinstance(verdict, Ticket)
            continue
        assert not isinstance(verdict, Ticket)
        explained = gate.explain(gate.refuse(verdict).id)
        assert explained is not None
        assert (explained.refusal.rule, bool(explained.cure)) == (by, True)
    stats = gate.stats()
    assert stats["admitted"] == 2
    assert stats["refused"] == 6
    assert stats["refused_rate_net"] == 2


def test_the_last_thousand_refusals_are_remembered() -> None:
    gate = new_gate(max_from_ip=1)
    gate.admit("192.0.2.1")
    names = []
    for _ in range(1100):
        verdict = gate.admit("192.0.2.1")
        assert isinstance(verdict, Refusal)
        names.append(gate.refuse(verdict).id)
    assert len(set(names)) == 1100
    assert [gate.explain(name) is not None for name in names] == [False] * 100 + [True] * 1000
