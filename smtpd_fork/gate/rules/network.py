"""max_from_net: sessions at once from one network, of one size or several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from smtpd_fork.gate.networks import Prefix
from smtpd_fork.gate.rules.base import Counts, Rule
from smtpd_fork.gate.verdict import Refusal
from smtpd_fork.units import parse_count

if TYPE_CHECKING:
    from smtpd_fork.gate.client import Client

__all__ = ["NetworkLimit", "NetworkRule"]


@dataclass(frozen=True, slots=True)
class NetworkLimit:
    """How many sessions may come from one network.

    :ivar sessions: at once, at least 1
    :ivar prefix: how large the network is
    """

    sessions: int
    prefix: Prefix

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``N/PREFIX``, as in ``100/24``, ``200/48`` or ``500/6:32``.

        :raises ValueError: *text* is not that
        """
        count, slash, prefix = text.partition("/")
        if not slash:
            raise ValueError("write N/PREFIX, as in 100/24 or 200/48")
        try:
            sessions = parse_count(count)
        except ValueError as error:
            raise ValueError(f"write N/PREFIX, as in 100/24 or 200/48: N {error}") from None
        return cls(sessions, Prefix.parse(prefix))


class NetworkRule(Rule):
    """So many sessions from one network.

    :param limit: how many, and how large the network is
    """

    name = "max_from_net"

    def __init__(self, limit: NetworkLimit) -> None:
        self.limit = limit
        self._ipv6 = limit.prefix.ipv6
        self._shift = limit.prefix.shift
        self._counts: dict[int, int] = {}

    def judge(self, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Refuse a network that has as many as it may."""
        number = client.number
        if number is None or client.ipv6 is not self._ipv6:
            return None
        count = self._counts.get(number >> self._shift, 0) + 1
        if count <= self.limit.sessions:
            return None
        return Refusal(self.name, self.limit.prefix.around(number), count, self.limit.sessions)

    def enter(self, client: Client) -> None:
        """Count a session in."""
        number = client.number
        if number is not None and client.ipv6 is self._ipv6:
            network = number >> self._shift
            self._counts[network] = self._counts.get(network, 0) + 1

    def leave(self, client: Client) -> None:
        """Count a session out."""
        number = client.number
        if number is None or client.ipv6 is not self._ipv6:
            return
        network = number >> self._shift
        left = self._counts[network] - 1
        if left:
            self._counts[network] = left
        else:
            del self._counts[network]
