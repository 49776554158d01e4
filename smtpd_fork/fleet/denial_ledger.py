"""DenialLedger: the networks that a fleet denies, in the memory of one process.

It does the same as ``denials.lua`` does in Redis; a test compares the two.
"""

from __future__ import annotations

from typing import NamedTuple, Self

from smtpd_fork.fleet.denial_message import (
    MOST_DENIALS,
    PAGE,
    Changes,
    DenialAnswer,
    ReceivedDenial,
    SentDenial,
)

__all__ = ["DenialLedger", "DenialState"]


class _Entry(NamedTuple):
    denial: SentDenial
    ends: int  # milliseconds; 0: never
    version: int


class DenialState(NamedTuple):
    """The content of a ledger, for an upgrade; see :class:`DenialLedger`."""

    entries: dict[str, _Entry]
    version: int
    last_removal: int
    created: int


class DenialLedger:
    """The list of denied networks.

    A version is the time of a change in milliseconds, or one more than the version before.

    :ivar version: of the last change
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}  # in the order of their versions
        self.version = self._last_removal = self._created = 0

    def state(self) -> DenialState:
        """Return the content."""
        return DenialState(self._entries, self.version, self._last_removal, self._created)

    @classmethod
    def of_state(cls, state: DenialState) -> Self:
        """Return a ledger with the content of another one."""
        found = cls()
        found._entries, found.version, found._last_removal, found._created = state
        return found

    def exchange(self, message: Changes, now: int) -> tuple[DenialAnswer, bool]:
        """Apply the changes in a message; return the answer, and whether the list has changed.

        :param now: milliseconds of a monotonic clock
        """
        before = self.version
        for network in [n for n, each in self._entries.items() if 0 < each.ends <= now]:
            del self._entries[network]
        for network in message.remove:
            if self._entries.pop(network, None) is not None:
                self._last_removal = self._next(now)
        full = sum(not self._add(denial, now) for denial in message.add)
        return self._page(message, now, full), self.version != before

    def _next(self, now: int) -> int:
        self.version = max(self.version + 1, now)
        return self.version

    def _add(self, denial: SentDenial, now: int) -> bool:
        """Add a denial; return False if the list is full."""
        exists = denial.network in self._entries
        if not exists and len(self._entries) >= MOST_DENIALS:
            return False
        if not (exists and denial.only_new):
            self._created = self._created or now
            self._entries.pop(denial.network, None)
            ends = now + denial.left if denial.left else 0
            self._entries[denial.network] = _Entry(denial, ends, self._next(now))
        return True

    def _page(self, message: Changes, now: int, full: int) -> DenialAnswer:
        complete = not message.next_page and (
            self._created != message.created or message.after < self._last_removal
        )
        after = 0 if complete else message.after
        entries = [each for each in self._entries.values() if each.version > after][:PAGE]
        page = [
            ReceivedDenial(
                *(each.denial.network, each.denial.text, each.denial.by, each.denial.node),
                *(each.denial.since, each.ends - now if each.ends else 0),
            )
            for each in entries
        ]
        last = entries[-1].version if entries else after
        more = len(entries) == PAGE
        return DenialAnswer(self.version, self._created, complete, more, last, full, page)
