"""LogKeeper: has the log opened again, and its level changed, when the daemon is told to reload."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from smtpd_fork.observe.logs.courier import Courier
from smtpd_fork.observe.logs.setup import set_level
from smtpd_fork.observe.service import Service

if TYPE_CHECKING:
    from smtpd_fork.config import DaemonConfig

__all__ = ["LogKeeper"]


class LogKeeper(Service):
    """Looks after the log of the process."""

    async def reloading(self) -> None:
        """Have the file opened again: logrotate(8) has moved it away, and sent SIGHUP."""
        for handler in logging.getLogger().handlers:
            if isinstance(handler, Courier):
                handler.reopen()

    async def reloaded(self, config: DaemonConfig) -> None:
        """Log from the level on that *config* names; a session goes on with its own."""
        set_level(config.log_level)
