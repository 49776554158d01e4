"""Statistics: numbers of admitted and refused clients, and the last refusals by id."""

from __future__ import annotations

import itertools
import secrets
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smtpd_fork.gate.verdict import Refusal

__all__ = ["CURES", "Explanation", "Statistics"]

REMEMBERED = 1000
"""Number of refusals that can be explained."""

CURES = {
    "limit_connections": "raise --limit-connections, or look at the open sessions",
    "descriptors": "allow more open files (ulimit -n, LimitNOFILE), or lower --limit-connections",
    "stress": "raise --limit-connections, look at the open sessions, or raise --stress-timeout",
    "paused": "resume the gate",
    "max_loop_lag": "look for a handler that blocks the event loop, or raise --max-loop-lag",
    "max_from_ip": "raise --max-from-ip, or --exempt the client",
    "max_from_net": "raise --max-from-net, or --exempt the network",
    "rate": "raise --rate, or --exempt the client",
    "rate_net": "raise --rate-net, or --exempt the network",
    "tls_failure_rate": "see in the log why the TLS handshakes of this client fail, raise "
    "--tls-failure-rate, or --exempt the client",
    "when_fleet_down": "see in the log why the fleet is out of reach, or use "
    "--when-fleet-down local",
    "fair_share": "raise --limit-connections, --exempt the client, or remove --fair-share",
    "deny": "remove the network from the --deny list, or --allow a smaller one in it",
    "dnsbl": "remove the zone from --dnsbl, raise --dnsbl-threshold, or --exempt the client",
    "proxy_trust": "add the proxy to --proxy-trust, or use a listener without +proxy",
    "greet_pause": "shorten --greet-pause, or --exempt the client",
    "refuse_first": "remove --refuse-first: it is for testing",
    "refuse_every": "remove --refuse-every: it is for testing",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """A refusal, with advice.

    :ivar refusal: rule, key, count, limit and reply
    :ivar cure: the advice: which option to change
    """

    refusal: Refusal
    cure: str

    def __str__(self) -> str:
        origin = f" ({self.refusal.origin})" if self.refusal.origin else ""
        return f"{self.refusal}{origin}; {self.cure}"


class Statistics:
    """The statistics of one gate. The caller of each method holds the gate's lock.

    :ivar admitted: number of clients that were admitted
    """

    def __init__(self) -> None:
        self.admitted = 0
        self._refused: Counter[str] = Counter()
        self._last: deque[Refusal] = deque(maxlen=REMEMBERED)
        # Short, so that people can read it out; the prefix distinguishes processes.
        self._front = secrets.token_hex(2)
        self._numbers = itertools.count(1)

    def note(self, refusal: Refusal) -> None:
        """Count a refusal, and set its id."""
        refusal.id = f"{self._front}-{next(self._numbers):x}"
        self._refused[refusal.rule] += 1
        self._last.append(refusal)

    def explain(self, name: str) -> Explanation | None:
        """Return the refusal with this id, with advice; None if it is unknown or too old."""
        for refusal in reversed(self._last):
            if refusal.id == name:
                return Explanation(refusal, refusal.cure or CURES.get(refusal.rule, ""))
        return None

    def counters(self) -> dict[str, int]:
        """Return ``admitted``, ``refused``, and ``refused_RULE`` for each rule with refusals."""
        by_rule = {f"refused_{rule}": count for rule, count in sorted(self._refused.items())}
        return {"admitted": self.admitted, "refused": self._refused.total(), **by_rule}
