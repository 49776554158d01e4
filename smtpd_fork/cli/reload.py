"""Reloads of the configuration, by SIGHUP or `smtpd-fork reload`, one after another."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from smtpd_fork.cli.setting_changes import daemon_changes, restart_lines
from smtpd_fork.errors import ExitStatus, SmtpdForkError, UnavailableError, error_origin
from smtpd_fork.handlers import Chain, load_handlers_again
from smtpd_fork.observe.reload_outcome import ReloadOutcome
from smtpd_fork.sanitizer import printable
from smtpd_fork.supervisor.processes import Processes

if TYPE_CHECKING:
    from smtpd_fork.cli.services import Services
    from smtpd_fork.cli.setting_sources import SettingSources
    from smtpd_fork.config import DaemonConfig
    from smtpd_fork.server import Server

__all__ = ["Reloads"]

log = logging.getLogger("smtpd_fork.daemon")

LONGEST_LINE = 1000
"""Characters of the log line of a reload."""


class Reloads:
    """Reads the configuration file, and the files that it names, again.

    :param turn: a lock that an upgrade holds as well, so that it does not start during a reload
    """

    def __init__(
        self,
        server: Server | Processes,
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
        self._next: asyncio.Future[ReloadOutcome] | None = None
        self._asked_by = ""
        self._modules: frozenset[str] = frozenset()
        self._task: asyncio.Task[None] | None = None

    def request(
        self, by: str = "SIGHUP", modules: frozenset[str] = frozenset()
    ) -> asyncio.Future[ReloadOutcome]:
        """Request a reload; return a future of its outcome.

        A request during a reload is carried out after it; further requests meanwhile share its
        outcome.

        :param by: the origin of the request, for the log
        :param modules: modules of handlers to import again
        """
        self._modules |= modules
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
            self._asked_by = by
        if self._task is None:
            self._task = asyncio.ensure_future(self._reload())
        return self._next

    async def _reload(self) -> None:
        while (outcome := self._next) is not None:
            self._next = None
            by = self._asked_by
            log.info("%s: reloading the configuration", by)
            async with self._turn:
                outcome.set_result(await self._once(by))
        self._task = None

    async def _once(self, by: str) -> ReloadOutcome:
        await self._services.call_all(lambda service: service.reloading())
        sources = self._sources
        try:
            sources = await asyncio.to_thread(sources.read_again)
            outcome = await self._change(sources, by)
        except SmtpdForkError as error:
            reason, status = sources.explain(error), sources.status(error)
            outcome = ReloadOutcome(reason=reason, status=status)
            log.error("%s", outcome)  # noqa: TRY400 - one line
        except Exception as error:  # an error in a handler
            # The text is not returned, as it may contain an argument of the handler.
            reason = f"{type(error).__name__}, see the daemon's log"
            outcome = ReloadOutcome(reason=reason, status=ExitStatus.SOFTWARE)
            log.exception("%s", outcome)
        else:
            log.info("%s", printable(str(outcome), LONGEST_LINE))
        await self._services.call_all(lambda service: service.reloaded(self._config))
        return outcome

    async def _change(self, sources: SettingSources, by: str) -> ReloadOutcome:
        if self._services.are_handed_over:
            raise UnavailableError("a new process has replaced this one")
        config = await asyncio.to_thread(sources.build)
        if isinstance(self._server, Processes):
            changes = await self._server.reload(config, by)
        else:
            changes = await self._change_server(self._server, config, sources)
        restart = restart_lines(self._config, config)
        for line in restart if sources.share is None else ():  # the supervisor logs them
            log.warning("%s", line)
        self._sources, self._config = sources, config
        return ReloadOutcome(changes, restart)

    async def _change_server(
        self, server: Server, config: DaemonConfig, sources: SettingSources
    ) -> list[str]:
        """Apply *config* to the server of this process; return a line for each change."""
        chain: Chain | None = None
        modules, self._modules = self._modules, frozenset()
        wanted = ("handler", "handler_timeout")
        if modules or any(sources.differs(self._sources, each) for each in wanted):
            with error_origin("handler"):
                chain = await asyncio.to_thread(
                    load_handlers_again,
                    config.handler,
                    modules,
                    sources.directory,
                    seconds=config.handler_timeout,
                )
        changes = await server.reload(config, handler=chain)
        changes += daemon_changes(self._config, config)
        if modules:
            changes.append("handlers loaded again")
        return changes

    async def end(self) -> None:
        """Wait for the end of the reload in progress."""
        if self._task is not None:
            await asyncio.wait([self._task])
