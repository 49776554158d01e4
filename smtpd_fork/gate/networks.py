"""Networks: CIDR as people write it, and a table that finds the smallest network of an address.

Both families live in one space of 128 bits, IPv4 where its mapped addresses are (RFC 4291 2.5.5.2),
so that one table holds both. The networks are flattened into ranges that do not overlap, sorted, so
that looking up is one binary search: 100,000 networks cost no more than a few comparisons.
"""

from __future__ import annotations

from bisect import bisect_right
from ipaddress import IPv4Network, ip_address, ip_network
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from smtpd_fork.units import parse_count

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "BITS",
    "V4_BITS",
    "V4_SPACE",
    "Network",
    "NetworkTable",
    "Prefix",
    "is_ipv4",
    "is_local",
    "number_of",
]

BITS = 128
V4_BITS = 32
V4_SPACE = 0xFFFF << V4_BITS
"""Where IPv4 begins: ``::ffff:0:0``."""

T = TypeVar("T")


class Network(NamedTuple):
    """A network.

    :ivar first: its first address, as a number in the space of both families
    :ivar prefix: bits of its prefix in that space: 96 more than in IPv4's own
    """

    first: int
    prefix: int

    @classmethod
    def parse(cls, text: str) -> Network:
        """Read ``192.0.2.0/24``, ``2001:db8::/32``, or one address.

        :raises ValueError: *text* is none of them, or has bits behind its prefix
        """
        try:
            network = ip_network(text, strict=False)
            address = ip_address(text.partition("/")[0])
        except ValueError:
            reason = "not a network; write 192.0.2.0/24, 2001:db8::/32, or an address"
            if "," in text:
                reason = "one network, not several: repeat the option, or use spaces in a variable"
            raise ValueError(reason) from None
        if address != network.network_address:
            raise ValueError(f"an address within {network}, not a network: it has host bits set")
        first = int(network.network_address)
        if isinstance(network, IPv4Network):
            return cls(V4_SPACE + first, BITS - V4_BITS + network.prefixlen)
        return cls(first, network.prefixlen)

    def __str__(self) -> str:
        """Return the network in its one form, as ``192.0.2.0/24`` or ``2001:db8::/32``."""
        text = Prefix(self.prefix, ipv6=not self.is_ipv4).around(self.first)
        return text.removesuffix(f"/{V4_BITS}") if self.is_ipv4 else text

    @property
    def is_ipv4(self) -> bool:
        """Whether it is a network of IPv4."""
        return is_ipv4(self.first) and self.prefix >= BITS - V4_BITS

    @property
    def last(self) -> int:
        """Its last address, as a number."""
        return self.first | ((1 << (BITS - self.prefix)) - 1)


class Prefix(NamedTuple):
    """How large a network is that clients are counted by.

    :ivar bits: that its addresses have in common, in the space of both families
    :ivar ipv6: whether it is about IPv6
    """

    bits: int
    ipv6: bool

    @classmethod
    def parse(cls, text: str) -> Prefix:
        """Read ``24``, which is of IPv4 (up to 32), ``48``, of IPv6, or ``6:32``, of IPv6 as well.

        :raises ValueError: *text* is no prefix
        """
        reason = "a prefix is 24 (IPv4), 48 (IPv6) or 6:32 (IPv6)"
        family, colon, digits = text.rpartition(":")
        if colon and family != "6":
            raise ValueError(reason)
        try:
            bits = parse_count(digits, at_least=0, at_most=BITS)
        except ValueError:
            raise ValueError(reason) from None
        if colon or bits > V4_BITS:
            return cls(bits, ipv6=True)
        return cls(BITS - V4_BITS + bits, ipv6=False)

    @property
    def shift(self) -> int:
        """How far an address is shifted to the right to be the number of its network."""
        return BITS - self.bits

    def around(self, number: int) -> str:
        """Return the network around an address of this family, as people write it."""
        first = number >> self.shift << self.shift
        if not self.ipv6:
            return "{}.{}.{}.{}/{}".format(*first.to_bytes(16)[12:], self.bits - (BITS - V4_BITS))
        text = inet_ntop(AF_INET6, first.to_bytes(16))
        return text if self.bits == BITS else f"{text}/{self.bits}"


def is_ipv4(number: int) -> bool:
    """Whether a number in the space of both families is an address of IPv4."""
    return number >> V4_BITS == V4_SPACE >> V4_BITS


def number_of(host: str) -> int | None:
    """Return an address as a number in the space of both families; None if *host* is none."""
    try:
        if ":" in host:
            return int.from_bytes(inet_pton(AF_INET6, host))
        return V4_SPACE | int.from_bytes(inet_pton(AF_INET, host))
    except OSError:
        return None


class NetworkTable(Generic[T]):
    """What belongs to the smallest network that an address is in.

    :param entries: networks and what belongs to them; of two for one network the later counts
    """

    def __init__(self, entries: Iterable[tuple[Network, T]]) -> None:
        self._starts: list[int] = []
        self._values: list[T | None] = []
        self._size = 0
        self._flatten(dict(entries))

    def _flatten(self, entries: dict[Network, T]) -> None:
        """Cut networks that lie in each other into ranges, each with the smallest one's value."""
        self._size = len(entries)
        # ::/0 is all of IPv6, and nothing of IPv4 that lies in it here.
        values: dict[Network, T | None] = {Network(V4_SPACE, BITS - V4_BITS): None, **entries}
        around: list[tuple[int, T | None]] = []  # the networks that are open: last address, value
        for network in sorted(values):  # of two that begin alike the larger comes first
            self._close(around, network.first)
            self._begin(network.first, values[network])
            around.append((network.last, values[network]))
        self._close(around, 1 << BITS)

    def _close(self, around: list[tuple[int, T | None]], until: int) -> None:
        """End the networks that end before *until*; what is around them goes on."""
        while around and around[-1][0] < until:
            last, _ = around.pop()
            self._begin(last + 1, around[-1][1] if around else None)

    def _begin(self, start: int, value: T | None) -> None:
        if self._starts and self._starts[-1] == start:
            self._values[-1] = value
        else:
            self._starts.append(start)
            self._values.append(value)

    def __len__(self) -> int:
        return self._size

    def values(self) -> Iterator[T]:
        """Yield what belongs to the networks, perhaps more than once.

        A network of which smaller ones take every address is left out.
        """
        return (value for value in self._values if value is not None)

    def find(self, number: int | None) -> T | None:
        """Return what belongs to the smallest network around an address; None if there is none."""
        if number is None:
            return None
        index = bisect_right(self._starts, number)
        return self._values[index - 1] if index else None


_LOCAL = NetworkTable(
    (Network.parse(network), True)
    for network in (
        *("127.0.0.0/8", "::1", "169.254.0.0/16", "fe80::/10"),
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),  # RFC 1918, RFC 4193
        "100.64.0.0/10",  # RFC 6598: between a provider and its customers, and in Kubernetes
    )
)


def is_local(number: int | None) -> bool:
    """Whether an address is of this host, or private."""
    return bool(_LOCAL.find(number))
