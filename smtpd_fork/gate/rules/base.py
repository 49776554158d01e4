"""Rule: the base class of the gate's rules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sized

    from smtpd_fork.gate.client import Client
    from smtpd_fork.gate.verdict import Refusal

__all__ = ["Counts", "Rule"]


class Counts:
    """The counts of open sessions.

    :param tickets: the tickets in use
    :ivar by_client: number of sessions by client; without clients that have no session
    """

    __slots__ = ("_tickets", "by_client")

    def __init__(self, tickets: Sized = ()) -> None:
        self._tickets = tickets
        self.by_client: dict[str, int] = {}

    @property
    def total(self) -> int:
        """The number of all sessions."""
        return len(self._tickets)

    def enter(self, client: Client) -> None:
        """Count a session for its client, and in the rules."""
        key = client.key
        if key is not None:
            self.by_client[key] = self.by_client.get(key, 0) + 1
        for rule in client.rules.counting:
            rule.enter(client)

    def leave(self, client: Client) -> None:
        """Uncount a session."""
        key = client.key
        if key is not None:
            left = self.by_client[key] - 1
            if left:
                self.by_client[key] = left
            else:
                del self.by_client[key]
        for rule in client.rules.counting:
            rule.leave(client)


class Rule(ABC):
    """One reason to refuse a client.

    :meth:`judge` decides and changes nothing. If no rule refuses a client and a slot is free, the
    gate calls :meth:`enter` and :meth:`arrived` of each rule, and :meth:`leave` when the session
    has ended. After a reload it calls :meth:`enter` of the new rules for the open sessions. The
    gate calls these methods while it holds its lock: they do no I/O, and take a bounded time.
    """

    name: str
    """The name of the setting, for refusals, counters and the log."""

    skips_exempt: ClassVar[bool] = True
    """Whether the rule does not apply to exempt clients."""

    arrival_only: ClassVar[bool] = False
    """Whether the rule is evaluated only when a connection arrives, not after a PROXY header."""

    address_only: ClassVar[bool] = False
    """Whether the verdict depends on the address alone: then it is cached for each client."""

    def concerns(self, client: Client) -> bool:
        """Return whether the rule applies to this kind of client.

        The result must depend only on the address family, and on whether the client is local,
        exempt, and has a key, as it is cached for these.
        """
        return True

    @abstractmethod
    def judge(self, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Return the refusal of *client*, or None."""

    def enter(self, client: Client) -> None:  # noqa: B027 - most rules keep no counts
        """Count a session of *client*."""

    def leave(self, client: Client) -> None:  # noqa: B027 - as above
        """Uncount a session of *client*."""

    def arrived(self, client: Client, now: float) -> None:  # noqa: B027 - most rules have no rate
        """Count a new session of *client* at *now*."""

    def take_back(self, client: Client) -> None:  # noqa: B027 - as above
        """Revert one :meth:`arrived` of *client*."""

    def is_same_as(self, other: Rule) -> bool:
        """Return whether a reload keeps *other*, a rule of the limits before, instead of this one.

        A rule that is kept keeps its history, such as rates; open sessions are counted again.
        """
        return False
