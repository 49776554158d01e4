"""rate, rate_net, tls_failure_rate: so many in a time, by client or network.

The generic cell rate algorithm (ITU-T I.371): for each client one number, the time at which it
would be due if its sessions had come evenly. It allows a burst of all N, and then one each
PERIOD / N. The numbers lie in the order in which they were last touched; each new client has a few
of the oldest forgotten that mean nothing any more, so nothing ever has to be swept, and the table
is bounded.

Half a TLS handshake costs the client a packet and the server a signature. So each handshake is
counted when it begins, and taken back when it succeeds: what remains are those that failed or are
under way. A client that uses TLS as it is meant to be used is never refused.
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
"""Clients that are known at once. Past it the one that was silent longest is forgotten, which gives
it a fresh start: 23 MB are worth more than that."""

HANDSHAKE_NETWORKS = ("24", "48")
"""Networks that are counted as well: those that have a share of the sessions by default."""

HANDSHAKE_NETWORK_FACTOR = 4
"""How many times the failures of a client a network may have: then four clients do not shut out the
others in it, and 65,536 of them, as a /48 has, do not come to more than that."""

_FORGOTTEN_A_SOURCE = 2

_LONGEST_PERIOD = 24 * 3600.0

_PERIOD_WORDS = {"s": "1s", "m": "1m", "h": "1h", "d": "24h", "": ""}


@dataclass(frozen=True, slots=True)
class Rate:
    """How many new sessions may come in a time.

    :ivar sessions: so many
    :ivar seconds: in so long
    :ivar prefix: how large the network is that they come from; None: they come from one client
    :ivar local: whether it is not shared with a fleet
    """

    sessions: int
    seconds: float
    prefix: Prefix | None = None
    local: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``N/PERIOD``, as in ``30/m``, ``5/10s`` or ``100/h``.

        :raises ValueError: *text* is not that
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

        :raises ValueError: *text* is not that
        """
        rate, slash, prefix = text.rpartition("/")
        if not slash or "/" not in rate:
            raise ValueError("write N/PERIOD/PREFIX, as in 100/m/24")
        plain = cls.parse(rate)
        return cls(plain.sessions, plain.seconds, Prefix.parse(prefix), plain.local)


class RateRule(Rule):
    """A limit of new sessions in a time, from one client or network.

    :param rate: how many, in how long, and how large the network is
    :param max_known: how many clients or networks are known at once
    """

    name = "rate"
    network_name: ClassVar[str] = "rate_net"
    text: ClassVar[str] = "Too many new connections from {key}, try again later"

    def __init__(self, rate: Rate, max_known: int = MAX_KNOWN) -> None:
        self.rate = rate
        self._interval = rate.seconds / rate.sessions
        # A hair of tolerance, as sums of fractions are not exact.
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
        """Whether it is about this family, and can tell the client from others."""
        prefix = self.rate.prefix
        return client.key is not None if prefix is None else client.ipv6 is prefix.ipv6

    def _key(self, client: Client) -> str | int | None:
        if self.rate.prefix is None or client.number is None:
            return client.key
        return client.number >> self._shift

    def judge(self, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Refuse a client that has come more often than that."""
        due = self._due.get(self._key(client))
        if due is None or due - now <= self._most:
            return None
        name, prefix = client.key or "", self.rate.prefix
        if prefix is not None:
            name = prefix.around(client.number or 0)
        count = round((due - now) / self._interval) + 1
        return Refusal(self.name, name, count, self.rate.sessions, text=self.text)

    def arrived(self, client: Client, now: float) -> None:
        """Count a new session."""
        key = self._key(client)
        due = self._due.get(key)
        if due is None:
            self._forget_some(now)
        elif due > now:
            now = due
        self._due[key] = now + self._interval
        self._due.move_to_end(key)

    def take_back(self, client: Client) -> None:
        """Undo one :meth:`arrived` of a client: it does not count."""
        key = self._key(client)
        if key in self._due:
            self._due[key] -= self._interval

    def _forget_some(self, now: float) -> None:
        """Make room for one more client."""
        due = self._due
        for _ in range(min(_FORGOTTEN_A_SOURCE, len(due))):
            oldest = next(iter(due))
            if due[oldest] > now and len(due) < self._max_known:
                break
            del due[oldest]

    def goes_on_as(self, other: Rule) -> bool:
        """Keep the table of a rate that did not change: a reload gives no client a fresh start."""
        return type(other) is type(self) and other.rate == self.rate


class HandshakeRule(RateRule):
    """A limit of failed TLS handshakes in a time, from one client or network."""

    name = network_name = "tls_failure_rate"
    text = "Too many failed TLS handshakes from {key}, try again later"

    def concerns(self, client: Client) -> bool:
        """Whether it is about this family; one local address may stand for many clients."""
        return super().concerns(client) and not (self.rate.prefix and client.local)


def handshake_rules(rate: Rate) -> Iterator[HandshakeRule]:
    """Return the rules that hold *rate* for clients, and a multiple of it for networks."""
    yield HandshakeRule(rate)
    for prefix in HANDSHAKE_NETWORKS:
        sessions = HANDSHAKE_NETWORK_FACTOR * rate.sessions
        yield HandshakeRule(Rate(sessions, rate.seconds, Prefix.parse(prefix)))
