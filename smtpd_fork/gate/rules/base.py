"""Rule: what every rule of the gate is like."""

from __future__ import annotations

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


class Rule:
    """One reason to refuse a client.

    A rule is asked with :meth:`judge`, which changes nothing. If all rules and the limit of all let
    a client in, each is told with :meth:`enter`, and with :meth:`leave` when the session has ended.
    The gate calls them under its lock: they do no I/O, and take a bounded time.
    """

    name: ClassVar[str]
    """The option that sets it, as it is in refusals, counters and the log."""

    about_sources: ClassVar[bool] = True
    """Whether sources that are exempt skip it."""

    about_arrival: ClassVar[bool] = False
    """Whether it is asked when a connection arrives, and not again when its client is known."""

    def judge(self, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Return why *client* may not come in, or None."""
        raise NotImplementedError

    def enter(self, client: Client) -> None:
        """Take note that *client* has come in."""

    def leave(self, client: Client) -> None:
        """Take note that *client* has gone."""
