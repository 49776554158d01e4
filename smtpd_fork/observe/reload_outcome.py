"""ReloadOutcome: the changes of a reload, or the reason for its failure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from smtpd_fork.errors import ExitStatus

__all__ = ["ReloadOutcome"]


class ReloadOutcome(NamedTuple):
    """The outcome of a reload.

    :ivar changes: a line for each changed setting: ``max_from_ip 2 -> 3``
    :ivar restart: a line for each changed setting that needs a restart
    :ivar reason: why the reload failed; empty after success
    :ivar status: the exit status for that error
    """

    changes: Sequence[str] = ()
    restart: Sequence[str] = ()
    reason: str = ""
    status: ExitStatus = ExitStatus.OK

    def __str__(self) -> str:
        if self.reason:
            return f"reload failed, previous settings stay in force: {self.reason}"
        return f"configuration reloaded ({', '.join(self.changes) or 'nothing changed'})"
