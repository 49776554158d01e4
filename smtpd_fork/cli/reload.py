"""Reloads: SIGHUP, one after another."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from smtpd_fork.errors import SmtpdForkError

if TYPE_CHECKING:
    from smtpd_fork.cli.companions import Companions
    from smtpd_fork.config import DaemonConfig
    from smtpd_fork.server import Server

__all__ = ["Reloads"]

log = logging.getLogger("smtpd_fork.daemon")


class Reloads:
    """Has the files of the lists read again, one time after another.

    :param server: whose they are
    :param config: the settings, which stay what they are
    :param companions: are told
    """

    def __init__(self, server: Server, config: DaemonConfig, companions: Companions) -> None:
        self._server = server
        self._config = config
        self._companions = companions
        self._asked = False
        self._task: asyncio.Task[None] | None = None

    def ask(self) -> None:
        """Have it done; a second time while it is done is done after it, and a third with that."""
        self._asked = True
        if self._task is None:
            self._task = asyncio.ensure_future(self._reload())

    async def _reload(self) -> None:
        while self._asked:
            self._asked = False
            log.info("SIGHUP: reading the lists again")
            await self._companions.reloading()
            try:
                await self._server.reload()
            except SmtpdForkError as error:
                log.error("the lists stay as they were: %s", error)  # noqa: TRY400 - one line
            else:
                log.info("the lists were read again")
            await self._companions.reloaded(self._config)
        self._task = None

    async def end(self) -> None:
        """Wait for what is being read."""
        if self._task is not None:
            await asyncio.wait([self._task])
