"""max_from_ip, max_from_net, fair_share: concurrent sessions of one client or network."""

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
    """Limits the concurrent sessions of a client: an IPv4 address or an IPv6 network.

    :param limit: sessions, at least 1
    """

    name = "max_from_ip"

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def judge(self, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Refuse a client that has reached the limit."""
        key = client.key or ""
        mine = counts.by_client.get(key, 0) + 1
        if mine <= self._limit:
            return None
        return Refusal(self.name, key, mine, self._limit)


@dataclass(frozen=True, slots=True)
class NetworkLimit:
    """A limit of concurrent sessions for each network of one size.

    :ivar sessions: maximum sessions, at least 1; for a share, a percentage
    :ivar prefix: the size of the networks
    :ivar share: whether it is a share of all slots. A share does not apply to local networks, as
        one address there (a bridge, a proxy, a relay) may be used by many clients
    :ivar local: whether the nodes of a fleet do not share the limit
    """

    sessions: int
    prefix: Prefix
    share: bool = False
    local: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``N/PREFIX`` or ``N%/PREFIX``, as in ``100/24``, ``500/6:32`` or ``25%/48``.

        :raises ValueError: *text* has another form
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
        """Return the maximum of sessions, if there are *total* slots; at least 1."""
        return -(-total * self.sessions // 100) if self.share else self.sessions


class NetworkLimitRule(Rule):
    """Limits the concurrent sessions of each network.

    :param limit: the limit
    :param sessions: the maximum of sessions; for a share, calculated from all slots
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
        """Return whether the client has this address family; a share excludes local networks."""
        return client.ipv6 is self._ipv6 and not (self._share and client.local)

    def judge(self, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Refuse a client whose network has reached the limit."""
        assert client.number is not None  # concerns() excludes clients without an address
        count = self._counts.get(client.number >> self._shift, 0) + 1
        if count <= self._sessions:
            return None
        network = self._prefix.network_of(client.number)
        return Refusal(self.name, network, count, self._sessions)

    def enter(self, client: Client) -> None:
        """Count a session of the client's network."""
        assert client.number is not None
        network = client.number >> self._shift
        self._counts[network] = self._counts.get(network, 0) + 1

    def leave(self, client: Client) -> None:
        """Uncount a session of the client's network."""
        assert client.number is not None
        network = client.number >> self._shift
        left = self._counts[network] - 1
        if left:
            self._counts[network] = left
        else:
            del self._counts[network]


class FairShareRule(Rule):
    """Limits each client to all slots / (clients + 1) while three quarters of them are in use.

    The 1 is added for the next client, so that its share is always free.

    :param total: number of connection slots
    """

    name = "fair_share"

    def __init__(self, total: int) -> None:
        self._total = total

    def judge(self, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Refuse a client that has reached its share, while slots are short."""
        if client.key is None or 4 * counts.total < 3 * self._total:
            return None
        mine = counts.by_client.get(client.key, 0) + 1
        share = max(1, self._total // (len(counts.by_client) + 1))
        if mine <= share:
            return None
        return Refusal(self.name, client.key, mine, share)
