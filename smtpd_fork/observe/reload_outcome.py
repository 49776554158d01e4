"""ReloadOutcome: what a reload has changed, or why it failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from smtpd_fork.errors import ExitStatus

__all__ = ["ReloadOutcome"]


class ReloadOutcome(NamedTuple):
    """The outcome of a reload.

    :ivar changes: a line for each setting that was changed: ``max_from_ip 2 -> 3``
    :ivar restart: a line for each setting that was changed and needs a restart
    :ivar reason: why the reload failed; empty if it did not
    :ivar status: the exit status of that error
    """

    changes: Sequence[str] = ()
    restart: Sequence[str] = ()
    reason: str = ""
    status: ExitStatus = ExitStatus.OK

    def __str__(self) -> str:
        if self.reason:
            return f"reload failed, previous settings stay in force: {self.reason}"
        return f"configuration reloaded ({', '.join(self.changes) or 'nothing changed'})"
