"""Rule: what every rule of the gate is like."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sized

    from smtpd_fork.gate.client import Client
    from smtpd_fork.gate.verdict import Refusal

__all__ = ["Counts", "Rule"]


class Counts:
    """The sessions that exist.

    :param tickets: those that are held
    :ivar by_client: sessions by client; a client without a session is not in it
    """

    __slots__ = ("_tickets", "by_client")

    def __init__(self, tickets: Sized = ()) -> None:
        self._tickets = tickets
        self.by_client: dict[str, int] = {}

    @property
    def total(self) -> int:
        """Sessions in all."""
        return len(self._tickets)

    def enter(self, client: Client) -> None:
        """Count a session in, for its client and its networks."""
        key = client.key
        if key is not None:
            self.by_client[key] = self.by_client.get(key, 0) + 1
        for rule in client.rules.told:
            rule.enter(client)

    def leave(self, client: Client) -> None:
        """Count a session out."""
        key = client.key
        if key is not None:
            left = self.by_client[key] - 1
            if left:
                self.by_client[key] = left
            else:
                del self.by_client[key]
        for rule in client.rules.told:
            rule.leave(client)


class Rule(ABC):
    """One reason to refuse a client.

    A rule is asked with :meth:`judge`, which changes nothing. If all rules and the limit of all
    admit a client, :meth:`enter` and :meth:`arrived` of each are called, and :meth:`leave` when the
    session has ended. After a reload the sessions that exist :meth:`enter` the new rules.
    The gate calls them under its lock: they do no I/O, and take a bounded time.
    """

    name: str
    """The option that sets it, as it is in refusals, counters and the log."""

    about_clients: ClassVar[bool] = True
    """Whether exempt clients skip it."""

    about_arrival: ClassVar[bool] = False
    """Whether it is asked when a connection arrives, and not again after a PROXY header."""

    about_address: ClassVar[bool] = False
    """Whether the address alone decides: it is asked once per client, and the answer kept."""

    def concerns(self, client: Client) -> bool:
        """Whether it applies to clients of this family, local or not, exempt or not."""
        return True

    @abstractmethod
    def judge(self, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Return why *client* is refused, or None."""

    def enter(self, client: Client) -> None:  # noqa: B027 - most rules keep no counts
        """Count a session of *client*."""

    def leave(self, client: Client) -> None:  # noqa: B027 - as above
        """Count a session of *client* no longer."""

    def arrived(self, client: Client, now: float) -> None:  # noqa: B027 - most do not care when
        """Count that *client* was admitted at *now*."""

    def take_back(self, client: Client) -> None:  # noqa: B027 - as above
        """Undo one :meth:`arrived` of *client*."""

    def goes_on_as(self, other: Rule) -> bool:
        """Whether *other*, of the limits before a reload, stays in place of this one.

        What it remembers of the past stays with it; counts of sessions are made again.
        """
        return False
