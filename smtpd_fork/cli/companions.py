"""Companions: what runs beside the server, as the settings name it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from smtpd_fork.config import DaemonConfig
    from smtpd_fork.listeners import Listener
    from smtpd_fork.observe import Companion
    from smtpd_fork.server import Server

__all__ = ["Companions", "companions_of"]

log = logging.getLogger("smtpd_fork.daemon")


def companions_of(
    config: DaemonConfig,  # noqa: ARG001 - none asks it yet
    server: Server,
    metrics: Sequence[Listener] = (),
) -> Iterator[Companion]:
    """Return what *config* wants beside *server*, in the order in which it begins.

    :param metrics: where these are served, if they are
    :raises SmtpdForkError: one of them cannot be
    """
    if metrics:
        from smtpd_fork.observe.status import Status  # noqa: PLC0415 - an extra has its libraries

        yield Status(server, metrics)


class Companions:
    """All of them, as one.

    :param companions: in the order in which they begin; they end in the other
    """

    def __init__(self, companions: Iterable[Companion]) -> None:
        self._all = list(companions)
        self._started: list[Companion] = []

    async def start(self) -> None:
        """Begin, one after another.

        :raises SmtpdForkError: one cannot; those before it have ended
        """
        try:
            for companion in self._all:
                await companion.start()
                self._started.append(companion)
        except BaseException:
            await self.stop()
            raise

    async def reloading(self) -> None:
        """Tell them that a reload has begun."""
        await self._tell(lambda companion: companion.reloading())

    async def reloaded(self, config: DaemonConfig) -> None:
        """Tell them that it has ended."""
        await self._tell(lambda companion: companion.reloaded(config))

    async def stopping(self) -> None:
        """Tell them that the stop has begun."""
        await self._tell(lambda companion: companion.stopping())

    async def stop(self) -> None:
        """Have them end."""
        await self._tell(lambda companion: companion.stop())

    async def _tell(self, what: Callable[[Companion], Awaitable[None]]) -> None:
        for companion in reversed(self._started):
            try:
                await what(companion)
            except Exception:
                log.exception("%s failed", companion)
