"""max_from_net: sessions at once from one network, of one size or several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from smtpd_fork.gate.client import network_text
from smtpd_fork.gate.networks import BITS, V4_BITS, is_ipv4
from smtpd_fork.gate.rules.base import Counts, Rule
from smtpd_fork.gate.verdict import Refusal

if TYPE_CHECKING:
    from smtpd_fork.gate.client import Client

__all__ = ["NetworkLimit", "NetworkRule", "read_prefix"]


def read_prefix(text: str) -> int:
    """Return the bits of a prefix in the space of both families.

    ``24`` is of IPv4 (up to 32), ``48`` of IPv6, and ``6:32`` of IPv6 as well.

    :raises ValueError: *text* is no prefix
    """
    family, colon, digits = text.rpartition(":")
    if not digits.isdigit() or not digits.isascii() or len(digits) > len(str(BITS)):
        raise ValueError("a prefix is 24 (IPv4), 48 (IPv6) or 6:32 (IPv6)")
    bits = int(digits)
    if bits > BITS or (colon and family != "6"):
        raise ValueError("a prefix is 24 (IPv4), 48 (IPv6) or 6:32 (IPv6)")
    return bits if colon or bits > V4_BITS else BITS - V4_BITS + bits


@dataclass(frozen=True, slots=True)
class NetworkLimit:
    """How many sessions may come from one network.

    :ivar sessions: at once, at least 1
    :ivar prefix: bits of the network, in the space of both families
    :ivar ipv6: whether it is about IPv6
    """

    sessions: int
    prefix: int
    ipv6: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``N/PREFIX``, as in ``100/24``, ``200/48`` or ``500/6:32``.

        :raises ValueError: *text* is not that
        """
        count, slash, prefix = text.partition("/")
        if not slash or not count.isdigit() or not count.isascii() or not 0 < len(count) < 8:  # noqa: PLR2004 - digits of a million
            raise ValueError("write N/PREFIX, as in 100/24 or 200/48")
        if int(count) < 1:
            raise ValueError("at least 1 session")
        bits = read_prefix(prefix)
        return cls(int(count), bits, ipv6=":" in prefix or int(prefix) > V4_BITS)


class NetworkRule(Rule):
    """So many sessions from one network.

    :param limit: how many, and how large the network is
    """

    name = "max_from_net"

    def __init__(self, limit: NetworkLimit) -> None:
        self.limit = limit
        self._shift = BITS - limit.prefix
        self._counts: dict[int, int] = {}

    def _network(self, client: Client) -> int | None:
        number = client.number
        if number is None or is_ipv4(number) == self.limit.ipv6:
            return None
        return number >> self._shift

    def judge(self, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Refuse a network that has as many as it may."""
        network = self._network(client)
        if network is None:
            return None
        count = self._counts.get(network, 0) + 1
        if count <= self.limit.sessions:
            return None
        text = network_text(network << self._shift, self.limit.prefix)
        return Refusal(self.name, text, count, self.limit.sessions)

    def enter(self, client: Client) -> None:
        """Count a session in."""
        network = self._network(client)
        if network is not None:
            self._counts[network] = self._counts.get(network, 0) + 1

    def leave(self, client: Client) -> None:
        """Count a session out."""
        network = self._network(client)
        if network is None:
            return
        left = self._counts[network] - 1
        if left:
            self._counts[network] = left
        else:
            del self._counts[network]
