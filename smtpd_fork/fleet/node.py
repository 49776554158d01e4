"""Node: the counts that a process has sent to its fleet, and its questions. No I/O, no clock.

Every question ends exactly once: by an answer, by :meth:`Node.cancel` or by
:meth:`Node.end_all_questions`. The gate counts a session as soon as it has a ticket; the fleet gets
the sessions without those whose question has no answer yet.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from smtpd_fork.fleet.sync import Sync

if TYPE_CHECKING:
    from smtpd_fork.fleet.question import Question
    from smtpd_fork.fleet.sync import Answer
    from smtpd_fork.gate import FleetShare, Refusal

__all__ = ["KEEP_SECONDS", "Message", "Node"]

KEEP_SECONDS = 90.0
"""How long the fleet keeps a count that is not sent again. A node sends it again after a third of
this time."""

MAX_CLIENTS = 128
"""Maximum number of clients in one message; more have to wait for the next one."""

MAX_COUNTS = 256
"""Maximum number of counts in one message, without those of its clients."""

MAX_SPARE = 64
"""Maximum number of free slots that a node holds in reserve."""

UNKNOWN = -1
"""Stands for a count of which it is not known whether the fleet has received it."""


class Message(NamedTuple):
    """A message in flight.

    :ivar keys: its keys, without the prefix
    :ivar questions: in the order of its clients
    :ivar sent: when it was sent, in seconds
    """

    sync: Sync
    keys: list[str]
    questions: list[Question]
    sent: float


class Node:
    """The state of one process as a node of a fleet.

    :param name: unique id of the node
    :param share: the gate's share of the fleet
    :ivar lease: seconds after which the fleet removes this node if it sends nothing
    :ivar nodes: number of live nodes
    :ivar others: sessions of the other nodes, at the last survey
    :ivar denials: version of the fleet's denials
    """

    def __init__(self, name: str, share: FleetShare, lease: float) -> None:
        self.name = name
        self._share = share
        self.lease = lease
        self.nodes = 1
        self.others = self.denials = 0
        self._surveyed = -math.inf
        self._queue: deque[Question] = deque()
        self._message: Message | None = None
        self._undecided: dict[str, int] = {}
        self._sent: OrderedDict[str, tuple[int, float]] = OrderedDict()

    # -- questions -------------------------------------------------------------------------------

    def ask(self, question: Question) -> None:
        """Queue a question about a client, whose session the gate counts already."""
        self._queue.append(question)
        for check in question.checks:
            if not check.interval:
                self._undecided[check.key] = self._undecided.get(check.key, 0) + 1

    def cancel(self, question: Question) -> None:
        """End a question; no error if it has ended."""
        if question.ended:
            return
        question.ended = True
        for check in question.checks:
            if not check.interval:
                left = self._undecided[check.key] - 1
                if left:
                    self._undecided[check.key] = left
                else:
                    del self._undecided[check.key]
                self._share.changed[check.key] = None

    def waiting_since(self) -> float | None:
        """Return since when the oldest question or message waits for an answer; None: none."""
        questions: list[Question] = list(self._queue)
        since = []
        if self._message is not None:
            questions += self._message.questions
            since.append(self._message.sent)
        since += [each.since for each in questions if not each.ended]
        return min(since, default=None)

    def end_all_questions(self) -> list[Question]:
        """End all questions, and return them; the caller decides without the fleet."""
        in_flight = [] if self._message is None else self._message.questions
        questions = [each for each in (*in_flight, *self._queue) if not each.ended]
        self._queue.clear()
        for question in questions:
            self.cancel(question)
        return questions

    # -- messages --------------------------------------------------------------------------------

    def has_questions(self) -> bool:
        """Return whether there are questions, or more changed counts than fit in one message."""
        return bool(self._queue) or len(self._share.changed) > MAX_COUNTS

    def has_unsent(self) -> bool:
        """Return whether there are questions or counts to send. Acquires the gate's lock."""
        if self._queue:
            return True
        with self._share.lock:
            changed = self._share.changed
            if self._message is not None:  # the answer will show which counts the fleet has
                return bool(changed)
            while changed:
                key = next(iter(changed))
                if self._is_unsent(key):
                    return True
                del changed[key]
        return False

    def message(
        self,
        now: float,
        sessions: int,
        reserve: int,
        about: str = "",
        *,
        waits: bool = False,
        leaves: bool = False,
    ) -> Message:
        """Build the next message; the previous one was answered, or has failed.

        The caller holds the gate's lock.

        :param sessions: all sessions of the gate
        :param reserve: slots reserved for exempt clients
        :param about: this and the other parameters: see :class:`Sync`
        """
        share = self._share
        questions = self._next_questions()
        keys: dict[str, int] = {}
        counts: list[int] = []
        clients = []
        for question in questions:
            numbers: list[int] = []
            for check in question.checks:
                number = keys.get(check.key)
                if number is None:
                    number = keys[check.key] = len(keys) + 1
                    if not check.interval:
                        counts += number, self._decided(check.key)
                numbers += number, check.limit.limit, check.interval, check.most
            clients.append(numbers)
        for key in self._unsent_keys(now):
            if key not in keys:
                number = keys[key] = len(keys) + 1
                counts += number, self._decided(key)
        sync = Sync(
            node=self.name,
            lease=round(self.lease * 1000),
            keep=round(KEEP_SECONDS * 1000),
            limit=share.connections,
            sessions=sessions,
            want=self._slots_wanted(sessions, reserve, waits),
            survey=now - self._surveyed >= self.lease / 3,
            waits=waits and not share.closing,
            leaves=leaves,
            about=about,
            counts=counts,
            clients=clients,
        )
        if sync.survey:
            self._surveyed = now
        # Stop to use them before the fleet knows: then another node may get them.
        share.slots = min(share.slots, sync.want)
        self._message = Message(sync, list(keys), questions, now)
        return self._message

    def answer(self, answer: Answer) -> list[tuple[Question, Refusal | None]]:
        """Apply the answer to the message in flight; return the questions that it decides.

        The caller holds the gate's lock.
        """
        assert self._message is not None
        sync, keys, questions, sent = self._message
        self._message = None
        counts = dict(zip(sync.counts[::2], sync.counts[1::2], strict=True))
        decided: list[tuple[Question, Refusal | None]] = []
        for number, question in enumerate(questions):
            which, count = answer.verdicts[2 * number : 2 * number + 2]
            refusal = self._verdict(question, which, count, sent)
            if refusal is None:
                for key in sync.clients[number][::4]:
                    if key in counts:
                        counts[key] += 1
            if not question.ended:
                self.cancel(question)
                if refusal is not None:
                    self._mark_refused(question)
                decided.append((question, refusal))
        for number, count in counts.items():
            self._record_sent(keys[number - 1], count, sent)
        if answer.fresh:
            self.resend_all()
        self._share.slots, self._share.until = answer.slots, sent + self.lease
        self.nodes = answer.nodes
        if answer.sessions >= 0:
            self.others = answer.sessions - sync.sessions
        self.denials = answer.denials
        self._share.others_wait = answer.waiting > 0
        return decided

    def connection_lost(self) -> None:
        """Handle the loss of the connection: the message in flight may have arrived or not."""
        if self._message is not None:
            for number in self._message.sync.counts[::2]:
                key = self._message.keys[number - 1]
                self._sent[key] = (UNKNOWN, 0.0)
            self._message = None
        self.resend_all()

    def resend_all(self) -> None:
        """Make the next messages contain all counts again."""
        self._share.changed.update(dict.fromkeys((*self._sent, *self._share.held)))
        self._sent = OrderedDict((key, (UNKNOWN, 0.0)) for key in self._sent)

    def _next_questions(self) -> list[Question]:
        questions: list[Question] = []
        while self._queue and len(questions) < MAX_CLIENTS:
            question = self._queue.popleft()
            if not question.ended:
                questions.append(question)
        return questions

    def _verdict(self, question: Question, which: int, count: int, now: float) -> Refusal | None:
        if not 0 < which <= len(question.checks):
            return None
        check = question.checks[which - 1]
        self._share.mark_over(check.key, count, now)
        return check.refusal(count)

    def _mark_refused(self, question: Question) -> None:
        for check in question.checks:
            if not check.interval:
                self._share.mark_refused(check.key)

    # -- counts ----------------------------------------------------------------------------------

    def _decided(self, key: str) -> int:
        """Return the sessions of *key* without those whose question has no answer yet."""
        return max(0, self._share.held.get(key, 0) - self._undecided.get(key, 0))

    def _record_sent(self, key: str, count: int, now: float) -> None:
        """Record that the fleet has the count *count* for *key*."""
        if count:
            self._sent[key] = (count, now)
            self._sent.move_to_end(key)
        else:
            self._sent.pop(key, None)

    def _is_unsent(self, key: str) -> bool:
        return self._sent.get(key, (0, 0.0))[0] != self._decided(key)

    def _unsent_keys(self, now: float) -> list[str]:
        """Return the keys whose counts must be sent: changed ones, and those sent long ago."""
        keys: list[str] = []
        changed = self._share.changed
        while changed and len(keys) < MAX_COUNTS:
            key = next(iter(changed))
            del changed[key]
            if self._is_unsent(key):
                keys.append(key)
        left = MAX_COUNTS - len(keys)
        for key, (_, sent) in islice(self._sent.items(), left):
            if now - sent < KEEP_SECONDS / 3:
                break
            keys.append(key)
        return keys

    # -- slots -----------------------------------------------------------------------------------

    def _slots_wanted(self, sessions: int, reserve: int, waits: bool) -> int:
        """Return how many of the fleet's slots this node wants to hold.

        That is the slots in use and some in reserve. While another node waits, it is those in use,
        and one more if a client waits here. A small change of the reserve is not requested, as each
        request makes the fleet add up the slots of all nodes.
        """
        share = self._share
        if share.closing:
            return min(share.connections, sessions)
        needed, spare = sessions + reserve, 0
        if not share.others_wait:
            free = share.connections - self.others - sessions
            spare = max(1, min(MAX_SPARE, free // (2 * self.nodes)))
            if needed + spare // 2 < share.slots <= needed + 2 * spare:
                return share.slots
        return min(share.connections, needed + max(spare, waits))
