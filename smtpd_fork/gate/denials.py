"""Denials: networks that an administrator, or a program, denies at run time.

They are added to the lists of ``deny`` and outlive a reload. There is one table for each size of
network that is denied, so that an addition costs the same with 1 entry or 10,000.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from itertools import count, islice
from typing import TYPE_CHECKING

from smtpd_fork.config import SettingError
from smtpd_fork.gate.networks import BITS, V4_BITS, Network, is_ipv4
from smtpd_fork.gate.rules.access import LONGEST_TEXT, printable_text

if TYPE_CHECKING:
    from collections.abc import Iterable
    from threading import Lock

__all__ = ["LONGEST_DENIAL", "MAX_AUTOMATIC", "MAX_DENIALS", "Denial", "Denials"]

MAX_DENIALS = 10_000
"""Networks at once: a few megabytes. More belong into a file of ``--deny``."""

MAX_AUTOMATIC = 9_000
"""Networks at once from which on rules and handlers add none: clients cause those denials, and an
administrator is to have room for others."""

LONGEST_DENIAL = 366 * 86400.0
"""Seconds; a denial without a time has no end."""

LONGEST_AUTHOR = 100
"""Characters of the name of an administrator or a program."""


@dataclass(frozen=True, slots=True)
class Denial:
    """A network that was denied at run time.

    :ivar network: its addresses
    :ivar written: the network as it was written
    :ivar text: of the reply; may be empty
    :ivar by: the administrator or the program that denied it
    :ivar since: seconds of the epoch
    :ivar until: seconds of the gate's clock; infinite without an end
    :ivar number: in the order of the additions
    :ivar node: of the fleet, on which it was denied; empty: this one
    """

    network: Network
    written: str
    text: str
    by: str
    since: float
    until: float = math.inf
    number: int = 0
    node: str = ""

    @property
    def origin(self) -> str:
        """The words of an explanation."""
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since))
        where = f" on {self.node}" if self.node else ""
        return f"denied at run time by {self.by}{where} at {when}"


class Denials:
    """The networks that are denied at run time. Its methods may be called from any thread.

    :param lock: of the gate; :attr:`version` and :meth:`find` are for its holder
    :param clock: returns seconds, never backwards
    :ivar on_change: called in any thread for each change made here: with the network, the denial
        (None: it was removed), and whether an earlier process has denied the network
    """

    def __init__(self, lock: Lock, clock: Callable[[], float]) -> None:
        self._lock = lock
        self._clock = clock
        self._all: dict[Network, Denial] = {}
        self._by_prefix: dict[int, dict[int, Denial]] = {}
        self._version = 0
        self._ends: list[tuple[float, int, Network]] = []  # a heap; some are there no longer
        self._numbers = count(1)
        self.on_change: Callable[[Network, Denial | None, bool], None] | None = None

    def add(
        self,
        network: str,
        text: str = "",
        *,
        seconds: float | None = None,
        by: str = "the program",
        since: float | None = None,
        node: str = "",
        automatic: bool = False,
    ) -> Denial:
        """Deny *network*; if it is denied already, text and time are replaced.

        :param text: of the reply; what is not printable ASCII becomes ``?``
        :param seconds: how long; None: until it is removed, or the process ends
        :param by: who denied it, for explanations
        :param since: seconds of the epoch, if a process before this one has denied it; default: now
        :param node: of the fleet, on which it was denied; empty: this one
        :param automatic: whether a client has caused it: then :data:`MAX_AUTOMATIC` holds, and a
            denial that lasts longer stays as it is
        :raises SettingError: *network* is none, the text is too long, the time is out of its range,
            or too many networks are denied already
        """
        parsed = _network("deny", network)
        text = printable_text(text)
        if len(text) > LONGEST_TEXT:
            reason = f"the text has {len(text)} characters, and may have {LONGEST_TEXT}"
            raise SettingError("deny", f"{text[:20]}...", reason)
        if seconds is not None and not _is_duration(seconds):
            reason = f"the time in seconds must be more than 0, and at most {LONGEST_DENIAL:.0f} s"
            raise SettingError("deny", seconds, reason)
        with self._lock:
            self._expire()
            before, end = self._all.get(parsed), self.end(seconds)
            if before is not None and automatic and before.until >= end:
                return before
            most = MAX_AUTOMATIC if automatic else MAX_DENIALS
            if before is None and len(self._all) >= most:
                reason = f"{most} networks are denied at run time; put some into a list file"
                raise SettingError("deny", network, reason)
            self._remove(parsed)
            at = time.time() if since is None else since
            denial = Denial(
                *(parsed, network, text, by[:LONGEST_AUTHOR], at, end),
                *(next(self._numbers), node),
            )
            self._put(denial)
        if self.on_change is not None:
            self.on_change(parsed, denial, since is not None)
        return denial

    def remove(self, network: str) -> bool:
        """Deny *network* no longer; return whether it was denied at run time.

        :raises SettingError: it is no network
        """
        parsed = _network("undeny", network)
        with self._lock:
            self._expire()
            removed = self._remove(parsed)
        if removed and self.on_change is not None:
            self.on_change(parsed, None, False)
        return removed

    def merge(self, denials: Iterable[Denial], gone: Iterable[Network]) -> None:
        """Apply changes of the fleet: add *denials*, remove *gone*; ``on_change`` is not called."""
        with self._lock:
            for network in gone:
                self._remove(network)
            for denial in denials:
                self._remove(denial.network)
                self._put(replace(denial, number=next(self._numbers)))

    def end(self, seconds: float | None) -> float:
        """Return when a denial ends that has so many seconds left; None: never."""
        return math.inf if seconds is None else self._clock() + seconds

    def left(self, denial: Denial) -> float | None:
        """Return the seconds that a denial has left; None: it has no end."""
        return None if denial.until == math.inf else denial.until - self._clock()

    def page(self, *, limit: int | None = None, after: int = 0) -> list[tuple[Denial, float]]:
        """Return denials and the seconds that each has left, in the order of the additions.

        :param limit: at most so many
        :param after: the number of the last one of the page before
        """
        with self._lock:
            self._expire()
            later = (each for each in self._all.values() if each.number > after)
            now = self._clock()
            return [(each, each.until - now) for each in islice(later, limit)]

    def __len__(self) -> int:
        with self._lock:
            self._expire()
            return len(self._all)

    # -- for the holder of the lock --------------------------------------------------------------

    @property
    def version(self) -> int:
        """Changes whenever :meth:`find` may have another answer."""
        if self._ends:
            self._expire()
        return self._version

    def find(self, number: int | None) -> Denial | None:
        """Return the smallest denied network around an address; None if there is none."""
        if number is None or not self._by_prefix:
            return None
        # ::/0 is all of IPv6, and nothing of IPv4, as in a NetworkTable.
        least = BITS - V4_BITS if is_ipv4(number) else 0
        for prefix in sorted(self._by_prefix, reverse=True):
            shift = BITS - prefix
            found = self._by_prefix[prefix].get(number >> shift << shift)
            if found is not None and prefix >= least:
                return found
        return None

    def _expire(self) -> None:
        now, ends = self._clock(), self._ends
        while ends and ends[0][0] <= now:
            _, number, network = heappop(ends)
            denial = self._all.get(network)
            if denial is not None and denial.number == number:
                self._remove(network)

    def _put(self, denial: Denial) -> None:
        network = denial.network
        self._all[network] = denial
        self._by_prefix.setdefault(network.prefix, {})[network.first] = denial
        self._version += 1
        if denial.until < math.inf:
            heappush(self._ends, (denial.until, denial.number, network))
        if len(self._ends) > 2 * MAX_DENIALS + len(self._all):  # as one is denied again and again
            there = (each for each in self._all.values() if each.until < math.inf)
            self._ends = [(each.until, each.number, each.network) for each in there]
            heapify(self._ends)

    def _remove(self, network: Network) -> bool:
        if self._all.pop(network, None) is None:
            return False
        of_prefix = self._by_prefix[network.prefix]
        del of_prefix[network.first]
        if not of_prefix:
            del self._by_prefix[network.prefix]
        self._version += 1
        return True


def _network(setting: str, text: object) -> Network:
    if not isinstance(text, str):
        reason = f"expected a network or an address as a string, not {type(text).__name__}"
        raise SettingError(setting, text, reason)
    try:
        return Network.parse(text)
    except ValueError as error:
        raise SettingError(setting, text[:LONGEST_TEXT], str(error)) from None


def _is_duration(seconds: object) -> bool:
    return isinstance(seconds, (int, float)) and 0 < seconds <= LONGEST_DENIAL
