"""rate, rate_net: new sessions in a time, by source or by network.

The generic cell rate algorithm (ITU-T I.371): for each source one number, the time at which it
would be due if its sessions had come evenly. It allows a burst of all N, and then one each
PERIOD / N. The numbers lie in the order in which they were last touched; each call forgets a few
of the oldest that mean nothing any more, so nothing ever has to be swept, and the table is bounded.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from smtpd_fork.gate.client import network_text
from smtpd_fork.gate.networks import BITS, V4_BITS, is_ipv4
from smtpd_fork.gate.rules.base import Counts, Rule
from smtpd_fork.gate.rules.network import read_prefix
from smtpd_fork.gate.verdict import Refusal
from smtpd_fork.units import parse_duration

if TYPE_CHECKING:
    from smtpd_fork.gate.client import Client

__all__ = ["MAX_KNOWN", "Rate", "RateRule"]

MAX_KNOWN = 1 << 17
"""Sources that are known at once. Past it the one that was silent longest is forgotten, which gives
it a fresh start: 20 MB are worth more than that."""

_FORGOTTEN_A_CALL = 2

_COUNT = re.compile(r"[0-9]{1,7}")
_PERIOD_WORDS = {"s": "1s", "m": "1m", "h": "1h", "d": "24h", "": ""}


@dataclass(frozen=True, slots=True)
class Rate:
    """How many new sessions may come in a time.

    :ivar sessions: so many
    :ivar seconds: in so long
    :ivar prefix: from a network of so many bits, in the space of both families; None: a source
    :ivar ipv6: whether that network is of IPv6
    """

    sessions: int
    seconds: float
    prefix: int | None = None
    ipv6: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``N/PERIOD``, as in ``30/m``, ``5/10s`` or ``100/h``.

        :raises ValueError: *text* is not that
        """
        count, slash, period = text.partition("/")
        period = _PERIOD_WORDS.get(period.lower(), period)
        if not slash or not _COUNT.fullmatch(count) or int(count) < 1 or not period:
            raise ValueError("write N/PERIOD, as in 30/m or 5/10s")
        seconds = parse_duration(period)
        if not 0 < seconds <= 86400:  # noqa: PLR2004 - a day
            raise ValueError("the period must be more than 0 and at most a day")
        return cls(int(count), seconds)

    @classmethod
    def parse_of_network(cls, text: str) -> Self:
        """Read ``N/PERIOD/PREFIX``, as in ``100/m/24`` or ``100/m/48``.

        :raises ValueError: *text* is not that
        """
        rate, slash, prefix = text.rpartition("/")
        if not slash or "/" not in rate:
            raise ValueError("write N/PERIOD/PREFIX, as in 100/m/24")
        plain = cls.parse(rate)
        bits = read_prefix(prefix)
        ipv6 = ":" in prefix or int(prefix) > V4_BITS
        return cls(plain.sessions, plain.seconds, bits, ipv6)


class RateRule(Rule):
    """So many new sessions in a time, from one source or one network.

    :param rate: how many, and in how long
    :param max_known: how many sources are known at once
    """

    name = "rate"

    def __init__(self, rate: Rate, max_known: int = MAX_KNOWN) -> None:
        self.rate = rate
        self._interval = rate.seconds / rate.sessions
        self._max_known = max_known
        self._due: OrderedDict[str | int, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._due)

    def _key(self, client: Client) -> str | int | None:
        if self.rate.prefix is None:
            return client.source
        number = client.number
        if number is None or is_ipv4(number) == self.rate.ipv6:
            return None
        return number >> (BITS - self.rate.prefix)

    def judge(self, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Refuse who has come more often than that."""
        key = self._key(client)
        if key is None:
            return None
        ahead = self._due.get(key, now) - now
        # A hair of tolerance, as sums of fractions are not exact.
        if ahead + self._interval <= self.rate.seconds * (1 + 1e-9):
            return None
        text = key if isinstance(key, str) else self._text(key)
        return Refusal(
            self.name if self.rate.prefix is None else "rate_net",
            text,
            round(ahead / self._interval) + 1,
            self.rate.sessions,
            text="Too many new connections from {key}, try again later",
        )

    def _text(self, network: int) -> str:
        assert self.rate.prefix is not None
        return network_text(network << (BITS - self.rate.prefix), self.rate.prefix)

    def arrived(self, client: Client, now: float) -> None:
        """Note one more new session; not when a reload counts those that are in once more."""
        key = self._key(client)
        if key is None:
            return
        due = self._due
        due[key] = max(due.get(key, now), now) + self._interval
        due.move_to_end(key)
        for _ in range(_FORGOTTEN_A_CALL):
            oldest = next(iter(due))
            if due[oldest] > now and len(due) <= self._max_known:
                break
            del due[oldest]
