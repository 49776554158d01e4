"""Networks: CIDR notation, prefixes, and the table that finds the network of an address."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_address, ip_network
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from smtpd_fork.gate.networks import Network, NetworkTable, Prefix, number_of


def unmapped(network: Any) -> Any:
    """Return the IPv4 network of a network of mapped addresses (RFC 4291 2.5.5.2)."""
    first = int(network.network_address)
    if network.version == 6 and network.prefixlen >= 96 and first >> 32 == 0xFFFF:
        return IPv4Network((first & 0xFFFFFFFF, network.prefixlen - 96))
    return network


@given(
    nets=st.lists(
        st.one_of(
            st.ip_addresses(v=4).flatmap(lambda a: st.integers(0, 32).map(lambda p: f"{a}/{p}")),
            st.ip_addresses(v=6).flatmap(lambda a: st.integers(0, 128).map(lambda p: f"{a}/{p}")),
            st.integers(0, 7).flatmap(
                lambda n: st.integers(24, 32).map(lambda p: f"192.0.2.{n * 32}/{p}")
            ),
        ),
        max_size=12,
    ),
    hosts=st.lists(
        st.one_of(st.ip_addresses(), st.integers(0, 255).map(lambda n: ip_address(f"192.0.2.{n}"))),
        min_size=1,
        max_size=10,
    ),
)
@example(nets=["::ffff:0:0/96"], hosts=[ip_address("192.0.2.0")])
def test_the_smallest_network_around_an_address_is_found(nets: list[str], hosts: list[Any]) -> None:
    written = [ip_network(net, strict=False) for net in nets]
    networks = [unmapped(net) for net in written]
    table = NetworkTable((Network.parse(str(net)), str(unmapped(net))) for net in written)
    for host in hosts:
        address = unmapped(ip_network(host)).network_address
        around = [net for net in networks if net.version == address.version and address in net]
        smallest = max(around, key=lambda net: net.prefixlen, default=None)
        found = table.find(number_of(str(host)))
        assert (found and ip_network(found)) == smallest


@given(st.ip_addresses(), st.integers(0, 128))
def test_the_text_of_a_network_is_its_usual_notation(address: Any, bits: int) -> None:
    bits = max(bits, 96) if address.version == 4 else bits
    number = number_of(str(address))
    assert number is not None
    text = Prefix(bits, ipv6=address.version == 6).network_of(number)
    assert number >> (128 - bits) == Network.parse(text).first >> (128 - bits)
    assert Network.parse(text).prefix == bits


def test_a_hundred_thousand_networks_are_looked_up_in_a_few_steps() -> None:
    table = NetworkTable((Network((0xFFFF << 32) + (n << 8), 120), n) for n in range(100_000))
    assert len(table) == 100_000
    assert table.find(number_of("0.0.5.77")) == 5
    assert table.find(number_of("1.134.159.1")) == 99_999
    assert table.find(number_of("1.134.160.1")) is None
    assert len(table._starts) <= 100_002  # one binary search in that: 17 steps
