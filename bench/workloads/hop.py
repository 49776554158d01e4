"""Messages that are relayed to another server, by SMTP and by LMTP."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from bench.contenders.base import HOST, Contender, Needs, Served, serving
from bench.contenders.dovecot import Dovecot, lmtp_socket
from bench.contenders.postfix import SmtpSink
from bench.cpu_share import cpu_share, cpu_share_fault
from bench.workloads.mail import RATE, WARM_UP, ManyAConnection, send

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.certificates import Certificates
    from bench.workloads.base import Metric

__all__ = ["Lmtp", "Relay"]

DOVECOT_SHARE = 0.5
"""CPU share of all processes of Dovecot, so that Dovecot is the limit also on two cores."""


class Relay(ManyAConnection):
    """Many small messages per connection, each relayed to smtp-sink before the reply."""

    key = "W10"
    title = "Many 5 KiB messages per connection, relayed"
    servers: ClassVar[Sequence[str]] = ("smtpd-fork", "discard", "postfix", "haraka")
    compared_with: ClassVar[Sequence[str]] = ("discard", "postfix", "haraka")

    @property
    def how(self) -> str:
        """The method of measurement."""
        return (
            "As W2, but each message is passed on to smtp-sink by SMTP, and answered 250 when that "
            f"has answered 250. {self.count:,} messages per round; some servers get more or fewer, "
            "see below. The CPU time of smtp-sink is not counted. The row **discard** has what it "
            "costs to receive them."
        )

    def missing(self) -> str:
        """Check for the client and the next hop."""
        return super().missing() or SmtpSink().missing()

    def measure(self, contender: Contender, certificates: Certificates) -> dict[str, float]:
        """Measure CPU time and wall time."""
        count = contender.share(self.count)
        with (
            serving(SmtpSink(), Needs(), certificates) as hop,
            serving(contender, Needs(hop=f"{HOST}:{hop.port}"), certificates) as served,
        ):
            return self.warm_cost(served, count)


class Lmtp(ManyAConnection):
    """Many small messages per connection, relayed to Dovecot, which stores them."""

    key = "W11"
    title = "Messages per second into Dovecot, by LMTP"
    metrics: ClassVar[Sequence[Metric]] = (RATE._replace(compared=True, more=True),)
    servers: ClassVar[Sequence[str]] = ("smtpd-fork", "dovecot")
    compared_with: ClassVar[Sequence[str]] = ("dovecot",)

    @property
    def how(self) -> str:
        """The method of measurement."""
        return (
            f"`smtp-source -d -s {self.at_once} -l {self.size}`: {self.count:,} messages by SMTP "
            "to smtpd-fork, which passes each to Dovecot by LMTP over a unix socket before it "
            f"answers 250, over as many connections; and (row **dovecot**) with `-L` straight to "
            "Dovecot's socket. All messages are for one mailbox. Dovecot gets half a core by a "
            "control group, so that it is the limit, and the ratio shows whether it is kept busy. "
            "More is better, also for the ratio."
        )

    def missing(self) -> str:
        """Check for the client and the next hop."""
        return super().missing() or Dovecot().missing() or cpu_share_fault()

    def measure(self, contender: Contender, certificates: Certificates) -> dict[str, float]:
        """Measure wall time."""
        with (
            serving(Dovecot(), Needs(), certificates) as hop,
            cpu_share([hop.pid], DOVECOT_SHARE),  # Dovecot starts its other processes later.
        ):
            path = lmtp_socket(hop.folder)
            if contender.name == Dovecot.name:
                return self._rate(hop, path)
            with serving(contender, Needs(handlers=[f"lmtp:unix:{path}"]), certificates) as served:
                return self._rate(served, "")

    def _rate(self, served: Served, lmtp: str) -> dict[str, float]:
        for count in (WARM_UP, self.count):
            began = time.monotonic()
            send(
                *(served, count),
                size=self.size,
                at_once=self.at_once,
                keep=self.keep,
                lmtp=lmtp,
            )
        return {"rate": self.count / (time.monotonic() - began)}
