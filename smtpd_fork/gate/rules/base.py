"""Rule: what every rule of the gate is like."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from smtpd_fork.gate.client import Client
    from smtpd_fork.gate.verdict import Refusal

__all__ = ["Counts", "Rule"]


class Counts:
    """The sessions that are in.

    :ivar total: in all
    :ivar by_source: by source; sources without a session are not in it
    """

    __slots__ = ("by_source", "total")

    def __init__(self) -> None:
        self.total = 0
        self.by_source: dict[str, int] = {}

    def enter(self, source: str) -> None:
        """Count a session of *source* in."""
        self.by_source[source] = self.by_source.get(source, 0) + 1

    def leave(self, source: str) -> None:
        """Count a session of *source* out."""
        left = self.by_source[source] - 1
        if left:
            self.by_source[source] = left
        else:
            del self.by_source[source]


class Rule(ABC):
    """One reason to refuse a client.

    A rule is asked with :meth:`judge`, which changes nothing. If all rules and the limit of all let
    a client in, each is told with :meth:`enter` and :meth:`arrived`, and with :meth:`leave` when
    the session has ended. After a reload those that are in :meth:`enter` the new rules.
    The gate calls them under its lock: they do no I/O, and take a bounded time.
    """

    name: ClassVar[str]
    """The option that sets it, as it is in refusals, counters and the log."""

    about_sources: ClassVar[bool] = True
    """Whether sources that are exempt skip it."""

    about_arrival: ClassVar[bool] = False
    """Whether it is asked when a connection arrives, and not again when its client is known."""

    about_address: ClassVar[bool] = False
    """Whether the address alone decides: it is asked once about each, and the answer kept."""

    def concerns(self, client: Client) -> bool:
        """Whether it has to do with clients of this family, local or not, exempt or not."""
        return True

    @abstractmethod
    def judge(self, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Return why *client* may not come in, or None."""

    def enter(self, client: Client) -> None:  # noqa: B027 - most rules keep no counts
        """Take note that *client* is in."""

    def leave(self, client: Client) -> None:  # noqa: B027 - as above
        """Take note that *client* has gone."""

    def arrived(self, client: Client, now: float) -> None:  # noqa: B027 - most do not care when
        """Take note that *client* has come in just now."""

    def take_back(self, client: Client) -> None:  # noqa: B027 - as above
        """Forget what :meth:`arrived` was told of *client*."""

    def goes_on_as(self, other: Rule) -> bool:
        """Whether *other*, of the limits before a reload, stays in place of this one.

        With it stays what it remembers of the past; counts of who is in are no such thing.
        """
        return False
