"""Reloads: SIGHUP, one after another."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from smtpd_fork.config import Config, DaemonConfig
from smtpd_fork.errors import SmtpdForkError
from smtpd_fork.handlers import load_handlers

if TYPE_CHECKING:
    from smtpd_fork.cli.services import Services
    from smtpd_fork.cli.setting_sources import SettingSources
    from smtpd_fork.handlers import Chain
    from smtpd_fork.server import Server

__all__ = ["Reloads"]

log = logging.getLogger("smtpd_fork.daemon")

_OF_RELOADS = {*Config.__struct_fields__, "handler", "log_level"}
"""Settings that a reload can change; the others take a restart."""


class Reloads:
    """Has the settings of the file, and all files that they name, read again.

    :param server: is reloaded
    :param sources: the settings that hold, and where they came from
    :param config: the same, read
    :param services: are told
    :param turn: held meanwhile: an upgrade must not see half of it
    """

    def __init__(
        self,
        server: Server,
        sources: SettingSources,
        config: DaemonConfig,
        services: Services,
        turn: asyncio.Lock,
    ) -> None:
        self._turn = turn
        self._server = server
        self._sources = sources
        self._config = config
        self._services = services
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
            log.info("SIGHUP: reading the settings again")
            async with self._turn:
                await self._once()
        self._task = None

    async def _once(self) -> None:
        await self._services.each(lambda service: service.reloading())
        sources = self._sources
        try:
            sources = await asyncio.to_thread(sources.read_again)
            await self._change(sources)
        except SmtpdForkError as error:
            log.error("all stays as it was: %s", sources.explain(error))  # noqa: TRY400 - one line
        except Exception:
            log.exception("all stays as it was")  # a handler's own fault
        else:
            log.info("the settings were read again")
        await self._services.each(lambda service: service.reloaded(self._config))

    async def _change(self, sources: SettingSources) -> None:
        config = await asyncio.to_thread(sources.build)
        chain: Chain | None = None
        if sources.differs(self._sources, "handler"):
            chain = await asyncio.to_thread(load_handlers, config.handler)
        await self._server.reload(config, handler=chain)
        for name in DaemonConfig.__struct_fields__:
            if name not in _OF_RELOADS and sources.differs(self._sources, name):
                log.warning("%s was changed: it takes a restart", name)
        self._sources, self._config = sources, config

    async def end(self) -> None:
        """Wait for what is being read."""
        if self._task is not None:
            await asyncio.wait([self._task])
