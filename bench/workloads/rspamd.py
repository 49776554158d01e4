"""Messages that rspamd checks: the additional cost of the filter."""

from __future__ import annotations

import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from bench.contenders.base import HOST, Contender, Needs, free_port, serving
from bench.destinations import listening
from bench.workloads.base import Metric
from bench.workloads.mail import ManyAConnection

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.certificates import Certificates

__all__ = ["Rspamd"]


class Rspamd(ManyAConnection):
    """Small messages, with the filter rspamd and without."""

    key = "W19"
    title = "5 KiB messages that rspamd judges"
    metrics: ClassVar[Sequence[Metric]] = (
        Metric("looks", "additional CPU, rspamd looks", "us", compared=True),
        Metric("edits", "additional CPU, a field is added", "us"),
        Metric("closes", "additional CPU, so too, one connection per message", "us"),
        Metric("cpu", "CPU without rspamd", "us"),
    )
    servers: ClassVar[Sequence[str]] = ("smtpd-fork",)
    compared_with: ClassVar[Sequence[str]] = ()

    @property
    def how(self) -> str:
        """The method of measurement."""
        return (
            "As W2, without a filter and with the filter `rspamd`; the values are the additional "
            "CPU time of the server per message. A small program on uvloop sends at once the "
            "answer of rspamd for a message with 16 symbols; its own CPU time is not counted. It "
            "keeps connections open, or closes them after each answer, as rspamd 3.4 does. "
            f"{self.count:,} messages for each."
        )

    def measure(self, contender: Contender, certificates: Certificates) -> dict[str, float]:
        """Measure CPU time."""
        with serving(contender, Needs(), certificates) as served:
            figures = {"cpu": self.warm_cost(served, self.count)["cpu"]}
        for name, options in (("looks", []), ("edits", ["--edits"]), ("closes", ["--closes"])):
            with (
                _rspamd(options) as url,
                serving(contender, Needs(rspamd=url), certificates) as served,
            ):
                figures[name] = self.warm_cost(served, self.count)["cpu"] - figures["cpu"]
        return figures


@contextmanager
def _rspamd(options: Sequence[str]) -> Iterator[str]:
    """Run a server that answers as rspamd; yield its URL."""
    port = free_port()
    command = [sys.executable, "-m", "bench.peers.rspamd", "--port", str(port), *options]
    with (
        tempfile.TemporaryDirectory(prefix="smtpd-fork-bench-") as folder,
        listening(command, Path(folder), port),
    ):
        yield f"http://{HOST}:{port}"
