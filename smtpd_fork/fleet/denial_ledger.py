"""DenialLedger: the networks that a fleet denies, in the memory of one process.

It does what ``denials.lua`` does in Redis; a test compares the two.
"""

from __future__ import annotations

from typing import NamedTuple, Self

from smtpd_fork.fleet.denial_message import MOST_DENIALS, PAGE, Changes, DenialAnswer, Found, Told

__all__ = ["DenialLedger", "DenialState"]


class _Entry(NamedTuple):
    told: Told
    ends: int  # milliseconds; 0: never
    version: int


class DenialState(NamedTuple):
    """All that a list has."""

    entries: dict[str, _Entry]
    version: int
    cut: int
    born: int


class DenialLedger:
    """The list.

    :ivar version: of the last change
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}  # in the order of their versions
        self.version = self._cut = self._born = 0

    def state(self) -> DenialState:
        """Return all that it has."""
        return DenialState(self._entries, self.version, self._cut, self._born)

    @classmethod
    def of_state(cls, state: DenialState) -> Self:
        """Return the list that was handed over."""
        found = cls()
        found._entries, found.version, found._cut, found._born = state
        return found

    def exchange(self, message: Changes, now: int) -> tuple[DenialAnswer, bool]:
        """Take a message; return the answer, and whether anything has changed.

        :param now: milliseconds of a clock that never goes back
        """
        before = self.version
        for network in [n for n, each in self._entries.items() if 0 < each.ends <= now]:
            del self._entries[network]
        for network in message.remove:
            if self._entries.pop(network, None) is not None:
                self._cut = self._next(now)
        full = sum(not self._add(told, now) for told in message.add)
        return self._page(message, now, full), self.version != before

    def _next(self, now: int) -> int:
        self.version = max(self.version + 1, now)
        return self.version

    def _add(self, told: Told, now: int) -> bool:
        """Add one; return False if there is no room."""
        exists = told.network in self._entries
        if not exists and len(self._entries) >= MOST_DENIALS:
            return False
        if not (exists and told.only_new):
            self._born = self._born or now
            self._entries.pop(told.network, None)
            ends = now + told.left if told.left else 0
            self._entries[told.network] = _Entry(told, ends, self._next(now))
        return True

    def _page(self, message: Changes, now: int, full: int) -> DenialAnswer:
        whole = not message.goes_on and (self._born != message.born or message.after < self._cut)
        after = 0 if whole else message.after
        entries = [each for each in self._entries.values() if each.version > after][:PAGE]
        page = [
            Found(
                *(each.told.network, each.told.text, each.told.by, each.told.node),
                *(each.told.since, each.ends - now if each.ends else 0),
            )
            for each in entries
        ]
        last = entries[-1].version if entries else after
        more = len(entries) == PAGE
        return DenialAnswer(self.version, self._born, whole, more, last, full, page)
