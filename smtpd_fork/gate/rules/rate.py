"""rate, rate_net, tls_failure_rate: number of events per period, by client or network.

They use the generic cell rate algorithm (ITU-T I.371). It needs one number for each client: the
time at which its next session would be due if its sessions were evenly distributed. It allows a
burst of N sessions, and then one session each PERIOD / N. The table is in the order of the last
changes. Each new client removes a few of the oldest entries that have expired, so that the table is
bounded and never has to be scanned.

An incomplete TLS handshake costs the client a packet and the server a signature. So each handshake
is counted when it begins, and uncounted when it succeeds; the handshakes that failed or are in
progress remain. A client whose handshakes succeed is never refused.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from smtpd_fork.gate.networks import Prefix
from smtpd_fork.gate.rules.base import Counts, Rule
from smtpd_fork.gate.verdict import Refusal
from smtpd_fork.setting_types import without_local
from smtpd_fork.units import parse_count, parse_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_fork.gate.client import Client

__all__ = ["MAX_KNOWN", "Rate", "RateRule", "handshake_rules"]

MAX_KNOWN = 1 << 17
"""Maximum number of clients in the table, which then needs 23 MB. Above it, the client that was
inactive for the longest time is removed, and so may use its whole rate again."""

HANDSHAKE_NETWORKS = ("24", "48")
"""Sizes of the networks whose handshakes are counted as well: those with a share of the connection
slots by default."""

HANDSHAKE_NETWORK_FACTOR = 4
"""The limit of a network is the limit of a client multiplied by this: high enough that fewer than
four clients cannot exclude the others in it, and independent of the 65,536 clients of a /48."""

_EXPIRED_PER_CLIENT = 2
"""For each new client, so many of the oldest entries are checked, and removed if expired."""

_LONGEST_PERIOD = 24 * 3600.0

_PERIOD_WORDS = {"s": "1s", "m": "1m", "h": "1h", "d": "24h", "": ""}


@dataclass(frozen=True, slots=True)
class Rate:
    """A maximum of new sessions per period.

    :ivar sessions: maximum of new sessions
    :ivar seconds: the period
    :ivar prefix: the size of the networks; None: it is a rate per client
    :ivar local: whether the nodes of a fleet do not share the limit
    """

    sessions: int
    seconds: float
    prefix: Prefix | None = None
    local: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``N/PERIOD``, as in ``30/m``, ``5/10s`` or ``100/h``.

        :raises ValueError: *text* has another form
        """
        text, local = without_local(text)
        count, slash, period = text.partition("/")
        period = _PERIOD_WORDS.get(period.lower(), period)
        if not slash or not period:
            raise ValueError("write N/PERIOD, as in 30/m, 30/h, 30/d or 5/10s")
        try:
            sessions = parse_count(count)
        except ValueError as error:
            raise ValueError(f"write N/PERIOD, as in 30/m or 5/10s: N: {error}") from None
        try:
            seconds = parse_duration(period)
        except ValueError:
            reason = f"{period!r} is not a period; write 30/m, 30/h, 30/d or 30/10s"
            raise ValueError(reason) from None
        if not 0 < seconds <= _LONGEST_PERIOD:
            raise ValueError("the period must be more than 0 and at most a day")
        return cls(sessions, seconds, None, local)

    @classmethod
    def parse_of_network(cls, text: str) -> Self:
        """Read ``N/PERIOD/PREFIX``, as in ``100/m/24`` or ``100/m/48``.

        :raises ValueError: *text* has another form
        """
        rate, slash, prefix = text.rpartition("/")
        if not slash or "/" not in rate:
            raise ValueError("write N/PERIOD/PREFIX, as in 100/m/24")
        plain = cls.parse(rate)
        return cls(plain.sessions, plain.seconds, Prefix.parse(prefix), plain.local)


class RateRule(Rule):
    """Limits the new sessions per period of each client or network.

    :param rate: the limit
    :param max_known: maximum number of clients or networks in the table
    """

    name = "rate"
    network_name: ClassVar[str] = "rate_net"
    text: ClassVar[str] = "Too many new connections from {key}, try again later"

    def __init__(self, rate: Rate, max_known: int = MAX_KNOWN) -> None:
        self.rate = rate
        self._interval = rate.seconds / rate.sessions
        # A small tolerance, as sums of floating-point numbers are not exact.
        self._most = rate.seconds * (1 + 1e-9) - self._interval
        self._max_known = max_known
        self._shift = 0
        if rate.prefix is not None:
            self.name = self.network_name
            self._shift = rate.prefix.shift
        self._due: OrderedDict[str | int | None, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._due)

    def concerns(self, client: Client) -> bool:
        """Return whether the client has a key, or an address of this family."""
        prefix = self.rate.prefix
        return client.key is not None if prefix is None else client.ipv6 is prefix.ipv6

    def _key(self, client: Client) -> str | int | None:
        if self.rate.prefix is None or client.number is None:
            return client.key
        return client.number >> self._shift

    def judge(self, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Refuse a client that exceeds the rate."""
        due = self._due.get(self._key(client))
        if due is None or due - now <= self._most:
            return None
        name, prefix = client.key or "", self.rate.prefix
        if prefix is not None:
            name = prefix.network_of(client.number or 0)
        count = round((due - now) / self._interval) + 1
        return Refusal(self.name, name, count, self.rate.sessions, text=self.text)

    def arrived(self, client: Client, now: float) -> None:
        """Count a new session."""
        key = self._key(client)
        due = self._due.get(key)
        if due is None:
            self._remove_expired(now)
        elif due > now:
            now = due
        self._due[key] = now + self._interval
        self._due.move_to_end(key)

    def take_back(self, client: Client) -> None:
        """Revert one :meth:`arrived` of a client."""
        key = self._key(client)
        if key in self._due:
            self._due[key] -= self._interval

    def _remove_expired(self, now: float) -> None:
        """Remove expired entries, or the oldest entry if the table is full."""
        due = self._due
        for _ in range(min(_EXPIRED_PER_CLIENT, len(due))):
            oldest = next(iter(due))
            if due[oldest] > now and len(due) < self._max_known:
                break
            del due[oldest]

    def is_same_as(self, other: Rule) -> bool:
        """Return whether the rate is the same; then a reload keeps the table."""
        return type(other) is type(self) and other.rate == self.rate


class HandshakeRule(RateRule):
    """Limits the failed TLS handshakes per period of each client or network."""

    name = network_name = "tls_failure_rate"
    text = "Too many failed TLS handshakes from {key}, try again later"

    def concerns(self, client: Client) -> bool:
        """Return the result of RateRule; False for a local network, which hides many clients."""
        return super().concerns(client) and not (self.rate.prefix and client.local)


def handshake_rules(rate: Rate) -> Iterator[HandshakeRule]:
    """Return the rules that apply *rate* to clients, and a multiple of it to networks."""
    yield HandshakeRule(rate)
    for prefix in HANDSHAKE_NETWORKS:
        sessions = HANDSHAKE_NETWORK_FACTOR * rate.sessions
        yield HandshakeRule(Rate(sessions, rate.seconds, Prefix.parse(prefix)))
