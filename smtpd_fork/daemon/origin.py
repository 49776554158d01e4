"""Origin: how this process was started, to start another one like it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from smtpd_fork.daemon.estate import TAKEOVER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Origin"]

_NOT_OURS = (TAKEOVER, "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID")
"""Of this process alone: a new one is told by other means what it inherits."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Command line, folder and environment, as they were at the start.

    :ivar command: the interpreter, and what it was called with
    :ivar folder: the current folder; None if there was none
    :ivar environment: without what was for this one process
    """

    command: Sequence[str]
    folder: str | None
    environment: Mapping[str, str]

    @classmethod
    def here(cls) -> Self:
        """Return this process's; to be asked before anything is changed."""
        try:
            folder: str | None = os.getcwd()  # noqa: PTH109 - what subprocess takes
        except OSError:
            folder = None
        environment = {k: v for k, v in os.environ.items() if k not in _NOT_OURS}
        # The interpreter may have been found by PATH; its options (-X, -W) are kept.
        return cls([sys.executable, *sys.orig_argv[1:]], folder, environment)
