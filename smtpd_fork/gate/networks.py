"""Networks in CIDR notation, and a table that finds the smallest network that contains an address.

The addresses of both families are numbers of 128 bits, so that one table can contain both; an IPv4
address is the number of its mapped IPv6 address (RFC 4291 2.5.5.2). The table is a sorted list of
ranges that do not overlap, so that a lookup is one binary search: 17 steps for 100,000 networks.
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
"""The first number of IPv4: ``::ffff:0:0``."""

T = TypeVar("T")


class Network(NamedTuple):
    """A network.

    :ivar first: its first address, as a number of 128 bits
    :ivar prefix: length of its prefix in 128 bits: for IPv4, 96 more than usual
    """

    first: int
    prefix: int

    @classmethod
    def parse(cls, text: str) -> Network:
        """Read ``192.0.2.0/24``, ``2001:db8::/32``, or one address.

        :raises ValueError: *text* has another form, or has host bits set
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
        """Return the network in its normal form, as ``192.0.2.0/24`` or ``2001:db8::/32``."""
        text = Prefix(self.prefix, ipv6=not self.is_ipv4).network_of(self.first)
        return text.removesuffix(f"/{V4_BITS}") if self.is_ipv4 else text

    @property
    def is_ipv4(self) -> bool:
        """Whether it is an IPv4 network."""
        return is_ipv4(self.first) and self.prefix >= BITS - V4_BITS

    @property
    def last(self) -> int:
        """Its last address, as a number."""
        return self.first | ((1 << (BITS - self.prefix)) - 1)


class Prefix(NamedTuple):
    """The size of the networks by which clients are counted.

    :ivar bits: length of the prefix in 128 bits
    :ivar ipv6: whether it is a prefix of IPv6
    """

    bits: int
    ipv6: bool

    @classmethod
    def parse(cls, text: str) -> Prefix:
        """Read ``24`` (IPv4, up to 32), ``48`` (IPv6) or ``6:32`` (IPv6).

        :raises ValueError: *text* is not a prefix
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
        """By how many bits to shift an address to the right to get the number of its network."""
        return BITS - self.bits

    def network_of(self, number: int) -> str:
        """Return the text of the network that contains an address of this family."""
        first = number >> self.shift << self.shift
        if not self.ipv6:
            return "{}.{}.{}.{}/{}".format(*first.to_bytes(16)[12:], self.bits - (BITS - V4_BITS))
        text = inet_ntop(AF_INET6, first.to_bytes(16))
        return text if self.bits == BITS else f"{text}/{self.bits}"


def is_ipv4(number: int) -> bool:
    """Return whether a number of 128 bits is an IPv4 address."""
    return number >> V4_BITS == V4_SPACE >> V4_BITS


def number_of(host: str) -> int | None:
    """Return an address as a number of 128 bits; None if *host* is not an address."""
    try:
        if ":" in host:
            return int.from_bytes(inet_pton(AF_INET6, host))
        return V4_SPACE | int.from_bytes(inet_pton(AF_INET, host))
    except OSError:
        return None


class NetworkTable(Generic[T]):
    """Maps addresses to the value of the smallest network that contains them.

    :param entries: networks and their values; of two entries for one network, the later is used
    """

    def __init__(self, entries: Iterable[tuple[Network, T]]) -> None:
        self._starts: list[int] = []
        self._values: list[T | None] = []
        self._size = 0
        self._flatten(dict(entries))

    def _flatten(self, entries: dict[Network, T]) -> None:
        """Convert nested networks into ranges, each with the value of its smallest network."""
        self._size = len(entries)
        # A network of IPv6, such as ::/0, contains no address of IPv4.
        values: dict[Network, T | None] = {Network(V4_SPACE, BITS - V4_BITS): None, **entries}
        around: list[tuple[int, T | None]] = []  # the enclosing networks: last address, value
        for network in sorted(values):  # of two with the same first address, the larger is first
            self._close(around, network.first)
            self._begin(network.first, values[network])
            around.append((network.last, values[network]))
        self._close(around, 1 << BITS)

    def _close(self, around: list[tuple[int, T | None]], until: int) -> None:
        """End the networks that end before *until*, and continue the network around each."""
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
        """Yield the values of the networks, perhaps more than once.

        A network is left out if smaller ones contain all its addresses.
        """
        return (value for value in self._values if value is not None)

    def find(self, number: int | None) -> T | None:
        """Return the value of the smallest network that contains an address, or None."""
        if number is None:
            return None
        index = bisect_right(self._starts, number)
        return self._values[index - 1] if index else None


_LOCAL = NetworkTable(
    (Network.parse(network), True)
    for network in (
        *("127.0.0.0/8", "::1", "169.254.0.0/16", "fe80::/10"),
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),  # RFC 1918, RFC 4193
        "100.64.0.0/10",  # RFC 6598: shared address space of providers, also used in Kubernetes
    )
)


def is_local(number: int | None) -> bool:
    """Return whether an address belongs to this host, or is private."""
    return bool(_LOCAL.find(number))
