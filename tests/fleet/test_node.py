"""A node's part of the protocol, without a socket: every question ends once, counts are the gate's.

The ledger stands for the fleet; messages and answers are lost, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.gates import Clock, new_gate

from smtpd_fork.fleet.ledger import Ledger
from smtpd_fork.fleet.node import Node
from smtpd_fork.fleet.question import Question
from smtpd_fork.gate import FleetShare, Refusal, Ticket

if TYPE_CHECKING:
    from smtpd_fork.fleet.sync import Answer

CLIENTS = [f"192.0.2.{number}" for number in range(1, 3)]
NODES = 2
LIMIT = 3
CONNECTIONS = 10

clients = st.sampled_from(CLIENTS)
nodes = st.integers(0, NODES - 1)


@dataclass(eq=False)
class Asked:
    """A client with a ticket, and the answers to its question."""

    ticket: Ticket
    question: Question | None = None
    answers: list[Refusal | None] = field(default_factory=list)


class Machine:
    """One node: its gate, and the messages to the fleet."""

    def __init__(self, name: str, clock: Clock, ledger: Ledger) -> None:
        self.clock, self.ledger = clock, ledger
        self.gate = new_gate(
            clock=clock, max_from_ip=LIMIT, max_from_net="0", limit_connections=100
        )
        self.share = FleetShare(self.gate.lock, CONNECTIONS)
        self.gate.join(self.share)
        self.node = Node(name, self.share, lease=6.0)
        self.under_way: Answer | None = None
        self.sent = False
        self.inside: list[Asked] = []

    def send(self, *, arrives: bool) -> None:
        with self.gate.lock:
            message = self.node.message(self.clock.now, self.gate.count, 0)
        self.sent = True
        if arrives:
            now = round(self.clock.now * 1e6)
            self.under_way = self.ledger.sync(message.keys, message.sync, now)

    def receive(self) -> None:
        self.sent = False
        if self.under_way is None:
            self.lose()
            return
        answer, self.under_way = self.under_way, None
        with self.gate.lock:
            decided = self.node.answer(answer)
        for question, refusal in decided:
            question.answered(refusal)

    def lose(self) -> None:
        self.sent, self.under_way = False, None
        for question in self.node.end_all_questions():
            question.answered(None)
        self.node.connection_lost()

    def settle(self) -> None:
        """Exchange messages until there is nothing to send."""
        if self.sent:
            self.receive()
        for _ in range(20):
            if not self.node.has_unsent():
                return
            self.send(arrives=True)
            self.receive()
        raise AssertionError("there is always something to send")


class Fleet(RuleBasedStateMachine):
    """Two nodes, some of whose messages and answers are lost."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.ledger = Ledger()
        self.machines = [Machine(f"n{n}", self.clock, self.ledger) for n in range(NODES)]
        self.everybody: list[Asked] = []
        for machine in self.machines:
            machine.send(arrives=True)
            machine.receive()

    @rule(number=nodes, client=clients, asks=st.booleans())
    def arrive(self, number: int, client: str, asks: bool) -> None:
        machine = self.machines[number]
        ticket = machine.gate.admit(client)
        if not isinstance(ticket, Ticket):
            return
        asked = Asked(ticket)
        machine.inside.append(asked)
        if not asks:  # as behind Gate.wrap, or while the fleet is out of reach
            return

        def answered(refusal: Refusal | None) -> None:
            asked.answers.append(refusal)
            if refusal is not None:
                machine.inside.remove(asked)
                ticket.release()

        assert ticket.client.fleet_checks
        asked.question = Question(ticket.client.fleet_checks, answered, self.clock.now)
        machine.node.ask(asked.question)
        self.everybody.append(asked)

    @rule(number=nodes, which=st.integers(0, 5))
    def depart(self, number: int, which: int) -> None:
        machine = self.machines[number]
        if which < len(machine.inside):
            asked = machine.inside.pop(which)
            if asked.question is not None and not asked.answers:
                machine.node.cancel(asked.question)
                self.everybody.remove(asked)
            asked.ticket.release()

    @rule(number=nodes, arrives=st.booleans())
    def send(self, number: int, arrives: bool) -> None:
        if not self.machines[number].sent:
            self.machines[number].send(arrives=arrives)

    @rule(number=nodes)
    def receive(self, number: int) -> None:
        if self.machines[number].sent:
            self.machines[number].receive()

    @rule(number=nodes)
    def lose(self, number: int) -> None:
        self.machines[number].lose()

    @rule(number=nodes)
    def give_up(self, number: int) -> None:
        for question in self.machines[number].node.end_all_questions():
            question.answered(None)

    @rule(number=nodes)
    def flush(self, number: int) -> None:
        self.ledger.remove(f"n{number}")

    @rule(seconds=st.floats(0.1, 10))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def nobody_is_answered_twice(self) -> None:
        assert all(len(asked.answers) <= 1 for asked in self.everybody)

    @rule(number=nodes, client=clients, then=st.sampled_from(["lose", "give_up", "receive"]))
    def ask(self, number: int, client: str, then: str) -> None:
        """Ask about a client, in the usual order up to the end of the question."""
        machine = self.machines[number]
        if machine.sent:
            machine.receive()
        self.arrive(number, client, asks=True)
        machine.send(arrives=True)
        getattr(self, then)(number)

    @precondition(lambda self: len(self.everybody) > 5)
    @rule()
    def settle(self) -> None:
        for _ in range(2):
            for machine in self.machines:
                machine.send(arrives=True) if not machine.sent else None
                machine.receive()
                machine.settle()
        self._check()

    def teardown(self) -> None:
        self.settle()
        for machine in self.machines:
            for asked in machine.inside:
                asked.ticket.release()
            machine.settle()
            assert machine.share.held == {}
            assert machine.gate.count == 0
        assert len(self.ledger) == 0

    def _check(self) -> None:
        """Check that every client has an answer, and that the gates' counts were sent."""
        assert all(len(asked.answers) == 1 for asked in self.everybody)
        sent: dict[str, int] = {}
        for machine in self.machines:
            assert machine.share.held == {
                f"c:{client}": count for client, count in machine.gate.clients.items()
            }
            for key, count in machine.share.held.items():
                sent[key] = sent.get(key, 0) + count
            assert not machine.node.has_unsent()
        assert {f"c:{each}": self.ledger.count(f"c:{each}") for each in CLIENTS} == {
            f"c:{each}": sent.get(f"c:{each}", 0) for each in CLIENTS
        }


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=250, stateful_step_count=30, deadline=None)
