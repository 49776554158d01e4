"""CommonAddressWarning: warns once when one private address holds most of the sessions.

Behind address translation (NAT), or a proxy that sends no PROXY header, all clients have the
address of the gateway, and the limits per client are limits of all. To raise them is no cure.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smtpd_fork.gate import Gate, Refusal

__all__ = ["CommonAddressWarning", "default_gateways"]

log = logging.getLogger("smtpd_fork.gate")

FEWEST = 10
"""Sessions in all, below which one client may well have most of them."""

MOST_OTHERS = 1024
"""Clients that are remembered: one at a time has most of the sessions."""

ROUTES = Path("/proc/net/route")


def default_gateways(routes: Path = ROUTES) -> set[str]:
    """Return the gateways of the default routes of IPv4 (proc(5)); none where that is not told."""
    found = set()
    with suppress(OSError, ValueError, IndexError):
        for line in routes.read_text(encoding="ascii").splitlines()[1:]:
            _, destination, gateway = line.split()[:3]
            if destination == "00000000" and gateway != "00000000":
                found.add(str(ip_address(bytes.fromhex(gateway)[::-1])))
    return found


class CommonAddressWarning:
    """Warns once if a client that is refused stands for many.

    :param gate: whose sessions count
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._told = False
        self._others: set[str] = set()
        """Clients that hold most of the sessions, and are not private: an attack is looked at
        once, not at each of its refusals."""

    def note(self, refusal: Refusal) -> None:
        """Take note of a refusal."""
        if self._told or refusal.rule not in {"max_from_ip", "rate", "fair_share"}:
            return
        if refusal.key in self._others:
            return
        gate = self._gate
        if gate.count < FEWEST or 2 * gate.count_from(refusal.key) <= gate.count:
            return
        if not _is_of_our_own(refusal.key):
            if len(self._others) < MOST_OTHERS:
                self._others.add(refusal.key)
            return
        self._told = True
        log.warning(
            "%s holds most of the sessions and is an address of your own network: if it stands "
            "for many clients (address translation, a proxy), have it send PROXY headers, or "
            "--exempt it",
            refusal.key,
        )


def _is_of_our_own(key: str) -> bool:
    """Whether a client is private, or the default gateway."""
    try:
        source = ip_network(key)  # an address, or the /64 of one
    except ValueError:
        return False
    return not source.is_loopback and (source.is_private or key in default_gateways())
