"""tls_failure_rate: TLS handshakes that fail, or do not end, by client and by network.

Half a handshake costs the client a packet and the server a signature. So each is counted when it
begins, and taken back when it succeeds: what remains are those that failed or are under way. A
client that uses TLS as it is meant to be used is never refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.gate.networks import Prefix
from smtpd_fork.gate.rules.rate import NetworkRateRule, Rate, RateRule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_fork.gate.client import Client

__all__ = ["handshake_rules"]

NETWORKS = ("24", "48")
"""Networks that are counted as well: those that have a share of the sessions by default."""

NETWORK_FACTOR = 4
"""How many times the failures of a client a network may have: then four clients do not shut out the
others in it, and 65,536 of them, as a /48 has, do not come to more than that."""

_TEXT = "Too many failed TLS handshakes from {key}, try again later"


class _ClientRule(RateRule):
    """So many handshakes of one client in a time."""

    name = "tls_failure_rate"
    text = _TEXT


class _NetworkRule(NetworkRateRule):
    """So many of one network; one address of a local network may stand for many clients."""

    name = "tls_failure_rate"
    text = _TEXT

    def concerns(self, client: Client) -> bool:
        """Whether it is about this family, and no local network."""
        return client.ipv6 is self._ipv6 and not client.local


def handshake_rules(rate: Rate) -> Iterator[RateRule]:
    """Return the rules that hold *rate* for clients, and a multiple of it for networks."""
    yield _ClientRule(rate)
    for prefix in NETWORKS:
        yield _NetworkRule(Rate(NETWORK_FACTOR * rate.sessions, rate.seconds, Prefix.parse(prefix)))
