"""Node: the counts that a process has sent to its fleet, and its questions. No I/O, no clock.

Every question ends exactly once: by an answer, by :meth:`Node.give_up`, or because its asker
forgets it. The gate counts a session from its ticket on; the fleet gets those that were decided.
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
"""How long a count is kept that is not sent again. It is sent three times in that time."""

MAX_CLIENTS = 128
"""Asked about in one message; more have to wait for the next."""

MAX_COUNTS = 256
"""Told in one message, besides those of the clients."""

MAX_SPARE = 64
"""Slots that a node holds and does not use."""

UNKNOWN = -1
"""A count that the fleet may have, or not."""


class Message(NamedTuple):
    """A message under way.

    :ivar keys: its keys, without the prefix
    :ivar questions: in the order of its clients
    :ivar sent: when, in seconds
    """

    sync: Sync
    keys: list[str]
    questions: list[Question]
    sent: float


class Node:
    """What one process holds of a fleet.

    :param name: of the node, unique
    :param share: the gate's part in the fleet
    :ivar lease: seconds for which the word of this node counts
    :ivar nodes: that live
    :ivar others: sessions of the other nodes, a moment ago
    :ivar denials: version of the denials of the fleet
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
        self._told: OrderedDict[str, tuple[int, float]] = OrderedDict()

    # -- questions -------------------------------------------------------------------------------

    def ask(self, question: Question) -> None:
        """Ask about a client, whose session the gate counts already."""
        self._queue.append(question)
        for check in question.checks:
            if not check.interval:
                self._undecided[check.key] = self._undecided.get(check.key, 0) + 1

    def forget(self, question: Question) -> None:
        """Wait for the answer no longer; no error if it has come."""
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

    def oldest(self) -> float | None:
        """Return since when a client, or a message, waits for an answer; None: none does."""
        questions: list[Question] = list(self._queue)
        since = []
        if self._message is not None:
            questions += self._message.questions
            since.append(self._message.sent)
        since += [each.since for each in questions if not each.ended]
        return min(since, default=None)

    def give_up(self) -> list[Question]:
        """Forget all questions, and return them: their clients go by the limits of the node."""
        in_flight = [] if self._message is None else self._message.questions
        questions = [each for each in (*in_flight, *self._queue) if not each.ended]
        self._queue.clear()
        for question in questions:
            self.forget(question)
        return questions

    # -- messages --------------------------------------------------------------------------------

    def has_questions(self) -> bool:
        """Whether there is a client to ask about, or so much to tell that it takes messages."""
        return bool(self._queue) or len(self._share.changed) > MAX_COUNTS

    def has_news(self) -> bool:
        """Whether there is a client to ask about, or a count to tell. Takes the gate's lock."""
        if self._queue:
            return True
        with self._share.lock:
            changed = self._share.changed
            if self._message is not None:  # what the fleet has is known with its answer
                return bool(changed)
            while changed:
                key = next(iter(changed))
                if self._is_news(key):
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
        """Return the next message; the one before was answered, or lost.

        The caller holds the gate's lock.

        :param sessions: of the gate, in all
        :param reserve: slots for exempt clients alone
        :param about: and the others: see :class:`Sync`
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
        for key in self._news(now):
            if key not in keys:
                number = keys[key] = len(keys) + 1
                counts += number, self._decided(key)
        sync = Sync(
            node=self.name,
            lease=round(self.lease * 1000),
            keep=round(KEEP_SECONDS * 1000),
            limit=share.connections,
            sessions=sessions,
            want=self._wanted(sessions, reserve, waits),
            survey=now - self._surveyed >= self.lease / 3,
            waits=waits and not share.closing,
            leaves=leaves,
            about=about,
            counts=counts,
            clients=clients,
        )
        if sync.survey:
            self._surveyed = now
        # Given up here first: once the fleet knows, they are another node's.
        share.slots = min(share.slots, sync.want)
        self._message = Message(sync, list(keys), questions, now)
        return self._message

    def answer(self, answer: Answer) -> list[tuple[Question, Refusal | None]]:
        """Take the answer of the message under way; return the questions that it decides.

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
                self.forget(question)
                if refusal is not None:
                    self._will_leave(question)
                decided.append((question, refusal))
        for number, count in counts.items():
            self._note(keys[number - 1], count, sent)
        if answer.fresh:
            self.tell_all()
        self._share.slots, self._share.until = answer.slots, sent + self.lease
        self.nodes = answer.nodes
        if answer.sessions >= 0:
            self.others = answer.sessions - sync.sessions
        self.denials = answer.denials
        self._share.others_wait = answer.waiting > 0
        return decided

    def lost(self) -> None:
        """Take note that the message under way may have arrived, or not."""
        if self._message is not None:
            for number in self._message.sync.counts[::2]:
                key = self._message.keys[number - 1]
                self._told[key] = (UNKNOWN, 0.0)
            self._message = None
        self.tell_all()

    def tell_all(self) -> None:
        """Have all counts told again, in the next messages."""
        self._share.changed.update(dict.fromkeys((*self._told, *self._share.held)))
        self._told = OrderedDict((key, (UNKNOWN, 0.0)) for key in self._told)

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
        self._share.know(check.key, count, now)
        return check.refusal(count)

    def _will_leave(self, question: Question) -> None:
        for check in question.checks:
            if not check.interval:
                self._share.will_leave(check.key)

    # -- counts ----------------------------------------------------------------------------------

    def _decided(self, key: str) -> int:
        """Return the sessions of *key* that the fleet is not being asked about."""
        return max(0, self._share.held.get(key, 0) - self._undecided.get(key, 0))

    def _note(self, key: str, count: int, now: float) -> None:
        """Take note that the fleet has *count* of *key*."""
        if count:
            self._told[key] = (count, now)
            self._told.move_to_end(key)
        else:
            self._told.pop(key, None)

    def _is_news(self, key: str) -> bool:
        return self._told.get(key, (0, 0.0))[0] != self._decided(key)

    def _news(self, now: float) -> list[str]:
        """Return the keys whose counts have to be sent; they count as sent then."""
        news: list[str] = []
        changed = self._share.changed
        while changed and len(news) < MAX_COUNTS:
            key = next(iter(changed))
            del changed[key]
            if self._is_news(key):
                news.append(key)
        room = MAX_COUNTS - len(news)
        for key, (_, told) in islice(self._told.items(), room):
            if now - told < KEEP_SECONDS / 3:
                break
            news.append(key)
        return news

    # -- slots -----------------------------------------------------------------------------------

    def _wanted(self, sessions: int, reserve: int, waits: bool) -> int:
        """Return how many slots of the fleet this node wants to hold.

        Those in use and a few to spare, unless another node waits; a node that waits wants one.
        A change of a few is not worth the question whether there are as many.
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
