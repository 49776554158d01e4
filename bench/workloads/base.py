"""Workload: what is done to a server, and what is read from it."""

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
    """A figure that a workload gives.

    :ivar key: what it is called in the results
    :ivar label: what it is called in the tables
    :ivar unit: behind each figure; may be empty
    :ivar compared: whether the tables have its ratio to other servers
    :ivar more: whether more is better
    """

    key: str
    label: str
    unit: str
    compared: bool = False
    more: bool = False


class Workload(ABC):
    """What is done to a server, and what is read from it."""

    key: ClassVar[str]
    """As ``--only`` has it."""

    title: ClassVar[str]
    metrics: ClassVar[Sequence[Metric]]

    servers: ClassVar[Sequence[str]] = ()
    """Names of the only servers that are measured; empty: all that take part."""

    compared_with: ClassVar[Sequence[str]] = ("smtp-sink", "aiosmtpd", "postfix")
    """Servers that the others' figures are divided by."""

    def measures(self, contender: Contender) -> bool:
        """Return whether a server is measured, if it can be."""
        if self.servers and contender.name not in self.servers:
            return False
        return contender.takes_part(self.key)

    @property
    @abstractmethod
    def how(self) -> str:
        """How it is measured, in whole sentences, with the sizes of this run."""

    def missing(self) -> str:
        """Return why it cannot be measured here at all, or an empty string."""
        return ""

    @abstractmethod
    def measure(self, contender: Contender, certificates: Certificates) -> dict[str, float]:
        """Start a server, measure it once, end it; return a figure for each metric.

        :raises BenchError: it did not work
        """
