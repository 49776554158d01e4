"""The gate with any order of calls: the counts are correct, and zero at the end."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.gates import Clock, new_gate

from smtpd_fork import Config, Ticket
from smtpd_fork.gate import limits_of

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
    """The counts are correct, exceed no limit after an admission, and are 0 at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.gate = new_gate(self.clock, limit_connections=6)
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
        """A PROXY header names a client that was admitted without an address."""
        unknown = [ticket for ticket in self.held if ticket.key is None]
        if unknown:
            ticket = unknown[index % len(unknown)]
            before = self.gate.count, self.gate.clients
            if self.gate.identify(ticket, host) is not None:
                assert (self.gate.count, self.gate.clients) == before
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
        assert sum(self.gate.clients.values()) == sum(t.key is not None for t in self.held)
        assert all(count > 0 for count in self.gate.clients.values())
        for each in self.gate._rules.rules:
            counts = getattr(each, "_counts", {})
            assert all(count > 0 for count in counts.values())

    def teardown(self) -> None:
        for ticket in self.held:
            ticket.release()
        assert self.gate.count == 0
        assert self.gate.clients == {}
        assert all(not getattr(each, "_counts", {}) for each in self.gate._rules.rules)


TestAnyOrder = AnyOrder.TestCase
