"""Denials: networks that an administrator or a program denies at run time.

They apply in addition to the lists of ``deny``, and a reload keeps them. There is one table for
each prefix length, so that an addition costs the same with 1 entry or 10,000.
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
"""Maximum number of networks, which need a few megabytes. Put more into a file of ``--deny``."""

MAX_AUTOMATIC = 9_000
"""Number of networks above which rules and handlers can add none. Clients cause such denials; the
rest is for administrators."""

LONGEST_DENIAL = 366 * 86400.0
"""Maximum duration of a denial in seconds; a denial without a duration has no end."""

LONGEST_AUTHOR = 100
"""Maximum length of the name of an administrator or a program, in characters."""


@dataclass(frozen=True, slots=True)
class Denial:
    """A network that was denied at run time.

    :ivar network: its addresses
    :ivar written: the network as it was written
    :ivar text: of the reply; may be empty
    :ivar by: the administrator or the program that denied it
    :ivar since: when it was denied, in seconds since the epoch
    :ivar until: when it ends, in seconds of the gate's clock; infinite without an end
    :ivar number: serial number of the addition
    :ivar node: the node of the fleet on which it was denied; empty: this one
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
        """A text for an explanation: the author and the time of the denial."""
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since))
        where = f" on {self.node}" if self.node else ""
        return f"denied at run time by {self.by}{where} at {when}"


class Denials:
    """The networks that are denied at run time. Its methods may be called from any thread.

    :param lock: of the gate; the callers of :attr:`version` and :meth:`find` must hold it
    :param clock: a monotonic clock, which returns seconds
    :ivar on_change: called in any thread for each change made here: with the network, the denial
        (None: it was removed), and whether an earlier process has denied the network
    """

    def __init__(self, lock: Lock, clock: Callable[[], float]) -> None:
        self._lock = lock
        self._clock = clock
        self._all: dict[Network, Denial] = {}
        self._by_prefix: dict[int, dict[int, Denial]] = {}
        self._version = 0
        self._ends: list[tuple[float, int, Network]] = []  # a heap; may contain removed denials
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
        """Deny *network*. If it is denied already, its text and its end are replaced.

        :param text: of the reply; characters that are not printable ASCII become ``?``
        :param seconds: duration; None: until it is removed, or the process ends
        :param by: the administrator or the program that denies it, for explanations
        :param since: when it was denied, in seconds since the epoch, if an earlier process has
            denied it; default: now
        :param node: the node of the fleet on which it was denied; empty: this one
        :param automatic: whether a client has caused it: then :data:`MAX_AUTOMATIC` applies, and an
            existing denial that lasts longer is not changed
        :raises SettingError: *network* is not a network, the text is too long, the duration is out
            of range, or too many networks are denied already
        """
        parsed = _network("deny", network)
        text = printable_text(text)
        if len(text) > LONGEST_TEXT:
            reason = f"the text has {len(text)} characters, at most {LONGEST_TEXT} are allowed"
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
        """Remove the denial of *network*; return False if it was not denied at run time.

        :raises SettingError: *network* is not a network
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
        """Return the time, by the gate's clock, in *seconds* from now; infinite for None."""
        return math.inf if seconds is None else self._clock() + seconds

    def left(self, denial: Denial) -> float | None:
        """Return the seconds until a denial ends; None: it has no end."""
        return None if denial.until == math.inf else denial.until - self._clock()

    def page(self, *, limit: int | None = None, after: int = 0) -> list[tuple[Denial, float]]:
        """Return denials, in the order of the additions, each with the seconds until it ends.

        :param limit: maximum number of denials; None: all
        :param after: the number of the last denial on the previous page
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

    # -- the caller holds the lock ---------------------------------------------------------------

    @property
    def version(self) -> int:
        """A number that changes whenever the result of :meth:`find` may change."""
        if self._ends:
            self._expire()
        return self._version

    def find(self, number: int | None) -> Denial | None:
        """Return the smallest denied network that contains an address, or None."""
        if number is None or not self._by_prefix:
            return None
        # A network of IPv6, such as ::/0, contains no address of IPv4, as in a NetworkTable.
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
        # The heap grows when a network is denied repeatedly: remove its old entries.
        if len(self._ends) > 2 * MAX_DENIALS + len(self._all):
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
