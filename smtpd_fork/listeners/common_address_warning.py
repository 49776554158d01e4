"""CommonAddressWarning: warns once if one private address has most of the sessions.

Behind address translation (NAT), or a proxy that sends no PROXY header, all clients have the
address of the gateway, so that per-client limits apply to all of them together. Higher limits do
not solve that.
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

MIN_SESSIONS = 10
"""Minimum number of sessions in total: with fewer, one client may normally have most of them."""

MAX_PUBLIC_CLIENTS = 1024
"""Maximum of public clients that are remembered."""

ROUTES = Path("/proc/net/route")


def default_gateways(routes: Path = ROUTES) -> set[str]:
    """Return the gateways of the IPv4 default routes (proc(5)); empty if they are unknown."""
    found = set()
    with suppress(OSError, ValueError, IndexError):
        for line in routes.read_text(encoding="ascii").splitlines()[1:]:
            _, destination, gateway = line.split()[:3]
            if destination == "00000000" and gateway != "00000000":
                found.add(str(ip_address(bytes.fromhex(gateway)[::-1])))
    return found


class CommonAddressWarning:
    """Warns once if a refused client is probably the gateway of many clients.

    :param gate: counts the sessions
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._warned = False
        self._public_clients: set[str] = set()
        """Public clients that had most of the sessions: they are checked once, and not again at
        each refusal during an attack."""

    def note(self, refusal: Refusal) -> None:
        """Log the warning if *refusal* shows that a gateway has most of the sessions."""
        if self._warned or refusal.rule not in {"max_from_ip", "rate", "fair_share"}:
            return
        if refusal.key in self._public_clients:
            return
        gate = self._gate
        if gate.count < MIN_SESSIONS or 2 * gate.count_from(refusal.key) <= gate.count:
            return
        if not _is_private_or_gateway(refusal.key):
            if len(self._public_clients) < MAX_PUBLIC_CLIENTS:
                self._public_clients.add(refusal.key)
            return
        self._warned = True
        log.warning(
            "%s has most of the sessions and is an address of your own network: if many clients "
            "share it (address translation, a proxy), configure it to send PROXY headers, or "
            "--exempt it",
            refusal.key,
        )


def _is_private_or_gateway(key: str) -> bool:
    """Whether a client has a private address, or is the default gateway."""
    try:
        network = ip_network(key)  # an address, or the /64 of one
    except ValueError:
        return False
    return not network.is_loopback and (network.is_private or key in default_gateways())
