"""max_loop_lag: nobody more comes in while the process has all it can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.gate.rules.base import Counts, Rule
from smtpd_fork.gate.verdict import Refusal

if TYPE_CHECKING:
    from smtpd_fork.gate.client import Client

__all__ = ["Load", "OverloadRule"]

TEXT = "Overloaded, try again later"


class Load:
    """How much the process has to do; whoever measures it writes it here.

    :ivar lag: seconds by which the loop is late
    """

    __slots__ = ("lag",)

    def __init__(self) -> None:
        self.lag = 0.0


class OverloadRule(Rule):
    """Refuses clients before the process drowns; exempt ones still come in.

    :param load: how much there is to do
    :param max_lag: seconds by which the loop may be late; 0 is no limit
    """

    name = "max_loop_lag"

    def __init__(self, load: Load, max_lag: float) -> None:
        self._load = load
        self._max_lag = max_lag

    def judge(self, client: Client, counts: Counts, now: float) -> Refusal | None:
        """Refuse everybody while the loop is late."""
        load = self._load
        if 0 < self._max_lag < load.lag:
            late, limit = round(load.lag * 1000), round(self._max_lag * 1000)
            return Refusal(self.name, "", late, limit, status="4.3.2", text=TEXT)
        return None
