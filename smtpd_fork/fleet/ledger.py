"""Ledger: the counts of a fleet, in the memory of one process. No I/O; the time is an argument.

It does the same as ``sync.lua`` does in Redis; a test compares the two. The processes of one
supervisor share their limits by it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import msgspec

from smtpd_fork.fleet.auth_attempt_ledger import AuthAttemptLedger, AuthAttemptState
from smtpd_fork.fleet.auth_attempts import AuthAttempt
from smtpd_fork.fleet.denial_ledger import DenialLedger, DenialState
from smtpd_fork.fleet.denial_message import Changes, DenialAnswer
from smtpd_fork.fleet.sync import Answer
from smtpd_fork.fleet.view import MOST_NODES, NodeEntry, View

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_fork.fleet.sync import Sync

__all__ = ["Ledger"]

FORGOTTEN_A_RATE = 2
"""For each new rate entry, so many of the oldest entries are checked, and removed if they have
expired."""


@dataclass(slots=True)
class _Node:
    """One node.

    :ivar ends: the end of its lease, in microseconds
    :ivar slots: the slots that it holds
    :ivar counts: its sessions by key
    """

    ends: int = 0
    slots: int = 0
    sessions: int = 0
    about: str = ""
    counts: dict[str, int] = field(default_factory=dict)


class _State(msgspec.Struct, array_like=True, frozen=True):
    nodes: dict[str, _Node]
    due: dict[str, int]
    waiting: set[str]
    denials: DenialState
    attempts: AuthAttemptState


class Ledger:
    """The counts of a fleet.

    :ivar hints: for the other nodes, after a message: ``empty``, ``waiting``, ``room`` or
        ``denials``
    """

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}
        self._counts: dict[str, int] = {}
        self._due: dict[str, int] = {}
        self._waiting: set[str] = set()
        self._denials = DenialLedger()
        self._attempts = AuthAttemptLedger()
        self.hints: list[str] = []

    def snapshot(self) -> bytes:
        """Return the content, for :meth:`of_snapshot`."""
        state = _State(
            *(self._nodes, self._due, self._waiting),
            *(self._denials.state(), self._attempts.state()),
        )
        return msgspec.msgpack.encode(state)

    @classmethod
    def of_snapshot(cls, data: bytes) -> Self:
        """Return a ledger with the content of another process's one.

        Both processes are on the same host, and so have the same monotonic clock.
        """
        state = msgspec.msgpack.decode(data, type=_State)
        found = cls()
        found._nodes, found._due, found._waiting = state.nodes, state.due, state.waiting
        found._denials = DenialLedger.of_state(state.denials)
        found._attempts = AuthAttemptLedger.of_state(state.attempts)
        for node in state.nodes.values():
            for key, count in node.counts.items():
                found._counts[key] = found._counts.get(key, 0) + count
        return found

    def __len__(self) -> int:
        return len(self._counts) + len(self._due)

    def count(self, key: str) -> int:
        """Return the sessions of *key* of all nodes together."""
        return self._counts.get(key, 0)

    def sync(self, keys: Sequence[str], message: Sync, now: int) -> Answer:
        """Apply a message of a node, and return the answer.

        :param keys: the keys to which the message refers
        :param now: microseconds of a monotonic clock
        """
        self.hints = []
        name = message.node
        dead = {each for each, node in self._nodes.items() if node.ends <= now}
        fresh = name not in self._nodes or name in dead
        for each in dead - {name}:
            self.remove(each)
        node = self._nodes.setdefault(name, _Node())
        node.ends = now + message.lease * 1000
        before = node.slots
        sessions = self._grant(node, message)
        node.about = message.about or node.about
        for number, count in zip(message.counts[::2], message.counts[1::2], strict=True):
            self._set_count(node, keys[number - 1], count)
        verdicts: list[int] = []
        for checks in message.clients:
            verdicts += self._judge(node, keys, checks, now)
        if message.waits and name not in self._waiting:
            self.hints.append("waiting")
        waiting = len(self._waiting - {name})
        if waiting and (node.slots < before or message.leaves or dead - {name}):
            self.hints.append("room")
        (self._waiting.add if message.waits else self._waiting.discard)(name)
        nodes = len(self._nodes)
        if fresh and nodes == 1:
            self.hints.append("empty")
        if message.leaves:
            self.remove(name)
        return Answer(fresh, nodes, node.slots, sessions, waiting, self._denials.version, verdicts)

    def _grant(self, node: _Node, message: Sync) -> int:
        """Grant slots to a node; return the sessions of all nodes, or -1 if not added up."""
        sessions, granted = -1, message.want
        node.sessions = message.sessions
        if message.survey or (message.limit and message.want > node.slots):
            held = sum(each.slots for each in self._nodes.values() if each is not node)
            sessions = sum(each.sessions for each in self._nodes.values())
            granted = min(message.want, message.limit - held)
        node.slots = max(message.sessions, granted) if message.limit else 0
        return sessions

    def ask(
        self, question: str, keys: Sequence[str], message: bytes, now: int
    ) -> View | DenialAnswer | tuple[str, list[tuple[str, int]]]:
        """Return the answer to a question; see :meth:`Link.ask`."""
        self.hints = []
        if question == "denials":
            changes = msgspec.msgpack.decode(message, type=Changes)
            answer, changed = self._denials.exchange(changes, now // 1000)
            self.hints = ["denials"] if changed else []
            return answer
        if question == "auth_attempts":
            attempt = msgspec.msgpack.decode(message, type=AuthAttempt)
            return self._attempts.count(keys, attempt, now // 1000)
        assert question == "view", question
        after, rates = msgspec.msgpack.decode(message, type=tuple[int, list[bool]])
        return self._view(keys, after, rates, now)

    def _view(self, keys: Sequence[str], after: int, rates: Sequence[bool], now: int) -> View:
        living = [(name, node) for name, node in self._nodes.items() if node.ends > now]
        lines = [
            NodeEntry(
                *(name, (node.ends - now) // 1000, node.slots, node.sessions),
                *(name in self._waiting, node.about),
            )
            for name, node in living[after : after + MOST_NODES]
        ]
        held, ahead = [], []
        for key, rate in zip(keys, rates, strict=True):
            by_node = [(name, node.counts[key]) for name, node in living if key in node.counts]
            held.append([] if rate else by_node[:MOST_NODES])
            ahead.append(max(0, self._due.get(key, now) - now) if rate else 0)
        return View(len(living), lines, held, ahead)

    def remove(self, name: str) -> None:
        """Remove a node and its counts."""
        self._waiting.discard(name)
        node = self._nodes.pop(name, None)
        if node is not None:
            for key in list(node.counts):
                self._set_count(node, key, 0)

    def _set_count(self, node: _Node, key: str, count: int) -> None:
        change = count - node.counts.get(key, 0)
        if count:
            node.counts[key] = count
        else:
            node.counts.pop(key, None)
        total = self._counts.get(key, 0) + change
        if total:
            self._counts[key] = total
        else:
            self._counts.pop(key, None)

    def _judge(
        self, node: _Node, keys: Sequence[str], checks: list[int], now: int
    ) -> tuple[int, int]:
        limits = [checks[at : at + 4] for at in range(0, len(checks), 4)]
        for which, (number, most, interval, ahead) in enumerate(limits, 1):
            key = keys[number - 1]
            if not interval:
                count = self._counts.get(key, 0) + 1
                if count > most:
                    return which, count
            elif (early := self._due.get(key, now) - now) > ahead:
                return which, int(early / interval + 0.5) + 1
        for number, _, interval, _ in limits:
            key = keys[number - 1]
            if interval:
                if key not in self._due:
                    self._remove_expired(now)
                # In the order of changes: the oldest entries are the first.
                self._due[key] = max(self._due.pop(key, now), now) + interval
            else:
                self._set_count(node, key, node.counts.get(key, 0) + 1)
        return 0, 0

    def _remove_expired(self, now: int) -> None:
        for _ in range(min(FORGOTTEN_A_RATE, len(self._due))):
            key = next(iter(self._due))
            due = self._due.pop(key)
            if due > now:
                self._due[key] = due  # to the end: it is checked again after all others
