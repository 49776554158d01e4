"""max_loop_lag: refuses new clients while the event loop lags."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.gate.rules.base import Counts, Rule
from smtpd_fork.gate.verdict import Refusal

if TYPE_CHECKING:
    from smtpd_fork.gate.client import Client

__all__ = ["Load", "OverloadRule"]

TEXT = "Overloaded, try again later"


class Load:
    """The load of the process; the lag monitor writes it.

    :ivar lag: event-loop lag, in seconds
    """

    __slots__ = ("lag",)

    def __init__(self) -> None:
        self.lag = 0.0


class OverloadRule(Rule):
    """Refuses clients, except exempt ones, while the event loop lags.

    :param load: the event-loop lag
    :param max_lag: seconds; 0 is no limit
    """

    name = "max_loop_lag"

    def __init__(self, load: Load, max_lag: float) -> None:
        self._load = load
        self._max_lag = max_lag

    def judge(self, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Refuse every client while the event loop lags."""
        load = self._load
        if 0 < self._max_lag < load.lag:
            late, limit = round(load.lag * 1000), round(self._max_lag * 1000)
            return Refusal(self.name, "", late, limit, status="4.3.2", text=TEXT)
        return None
