"""max_from_ip, max_from_net, fair_share: sessions at once from one client or network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from smtpd_fork.gate.networks import Prefix
from smtpd_fork.gate.rules.base import Counts, Rule
from smtpd_fork.gate.verdict import Refusal
from smtpd_fork.setting_types import without_local
from smtpd_fork.units import parse_count

if TYPE_CHECKING:
    from smtpd_fork.gate.client import Client

__all__ = ["ClientLimitRule", "FairShareRule", "NetworkLimit", "NetworkLimitRule"]


class ClientLimitRule(Rule):
    """A limit of sessions from one client: an IPv4 address, or an IPv6 network.

    :param limit: sessions, at least 1
    """

    name = "max_from_ip"

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def judge(self, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Refuse a client that has as many as it may; one without an address has none."""
        key = client.key or ""
        mine = counts.by_client.get(key, 0) + 1
        if mine <= self._limit:
            return None
        return Refusal(self.name, key, mine, self._limit)


@dataclass(frozen=True, slots=True)
class NetworkLimit:
    """How many sessions one network may have.

    :ivar sessions: at once, at least 1; a percentage if it is a share
    :ivar prefix: how large the network is
    :ivar share: whether it is a share of all sessions, which does not apply to local networks: one
        address there (a bridge, a proxy, a relay) may stand for many clients
    :ivar local: whether it is not shared with a fleet
    """

    sessions: int
    prefix: Prefix
    share: bool = False
    local: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``N/PREFIX`` or ``N%/PREFIX``, as in ``100/24``, ``500/6:32`` or ``25%/48``.

        :raises ValueError: *text* is not that
        """
        usage = "write N/PREFIX or N%/PREFIX, as in 100/24 or 25%/48"
        text, local = without_local(text)
        count, slash, prefix = text.partition("/")
        if not slash:
            raise ValueError(usage)
        share = count.endswith("%")
        try:
            sessions = parse_count(count[:-1], at_most=100) if share else parse_count(count)
        except ValueError as error:
            raise ValueError(f"{usage}: N {error}") from None
        return cls(sessions, Prefix.parse(prefix), share, local)

    def of(self, total: int) -> int:
        """Return how many sessions that is, of *total*; at least 1."""
        return -(-total * self.sessions // 100) if self.share else self.sessions


class NetworkLimitRule(Rule):
    """A limit of sessions from one network.

    :param limit: how many, and how large the network is
    :param sessions: how many that is, where it is a share
    """

    name = "max_from_net"

    def __init__(self, limit: NetworkLimit, sessions: int) -> None:
        self._prefix = limit.prefix
        self._sessions = sessions
        self._share = limit.share
        self._ipv6 = limit.prefix.ipv6
        self._shift = limit.prefix.shift
        self._counts: dict[int, int] = {}

    def concerns(self, client: Client) -> bool:
        """Whether it is about this family; a share does not apply to local networks."""
        return client.ipv6 is self._ipv6 and not (self._share and client.local)

    def judge(self, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Refuse a network that has as many as it may."""
        assert client.number is not None  # or it would be of no family
        count = self._counts.get(client.number >> self._shift, 0) + 1
        if count <= self._sessions:
            return None
        network = self._prefix.around(client.number)
        return Refusal(self.name, network, count, self._sessions)

    def enter(self, client: Client) -> None:
        """Count a session of the client's network."""
        assert client.number is not None
        network = client.number >> self._shift
        self._counts[network] = self._counts.get(network, 0) + 1

    def leave(self, client: Client) -> None:
        """Count a session of the client's network no longer."""
        assert client.number is not None
        network = client.number >> self._shift
        left = self._counts[network] - 1
        if left:
            self._counts[network] = left
        else:
            del self._counts[network]


class FairShareRule(Rule):
    """Over three quarters full, no client holds more than all slots / (clients + 1).

    The one more is for the next client: there is always a share left for it.

    :param total: connection slots in all
    """

    name = "fair_share"

    def __init__(self, total: int) -> None:
        self._total = total

    def judge(self, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Refuse a client that has its share, while slots are short."""
        if client.key is None or 4 * counts.total < 3 * self._total:
            return None
        mine = counts.by_client.get(client.key, 0) + 1
        share = max(1, self._total // (len(counts.by_client) + 1))
        if mine <= share:
            return None
        return Refusal(self.name, client.key, mine, share)
