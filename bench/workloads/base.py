"""Workload: the work that servers do, and the metrics that are measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.certificates import Certificates
    from bench.contenders.base import Contender

__all__ = ["MICRO", "Metric", "Workload"]

MICRO = 1e6
"""Microseconds in a second."""


class Metric(NamedTuple):
    """A metric of a workload.

    :ivar key: its name in the results
    :ivar label: its name in the tables
    :ivar unit: text behind each value; may be empty
    :ivar compared: whether the tables have its ratio to other servers
    :ivar more: whether more is better
    """

    key: str
    label: str
    unit: str
    compared: bool = False
    more: bool = False


class Workload(ABC):
    """The work that servers do, and the metrics that are measured."""

    key: ClassVar[str]
    """The name in ``--only``."""

    title: ClassVar[str]
    metrics: ClassVar[Sequence[Metric]]

    servers: ClassVar[Sequence[str]] = ()
    """Names of the only servers that are measured; empty: all that support the workload."""

    compared_with: ClassVar[Sequence[str]] = ("smtp-sink", "aiosmtpd", "postfix")
    """Servers whose values divide those of the others."""

    def measures(self, contender: Contender) -> bool:
        """Return whether a server is measured, if that is possible."""
        if self.servers and contender.name not in self.servers:
            return False
        return contender.takes_part(self.key)

    @property
    @abstractmethod
    def how(self) -> str:
        """The method of measurement, in whole sentences, with the sizes of this run."""

    def missing(self) -> str:
        """Return why the workload cannot be measured on this machine, or an empty string."""
        return ""

    @abstractmethod
    def measure(self, contender: Contender, certificates: Certificates) -> dict[str, float]:
        """Start a server, measure it once, end it; return a value for each metric.

        :raises BenchError: the measurement failed
        """
