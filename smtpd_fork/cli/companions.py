"""Companions: what runs beside the server, as the settings name it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from smtpd_fork.observe.control import Control
from smtpd_fork.observe.logs import LogKeeper

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from smtpd_fork.config import DaemonConfig
    from smtpd_fork.listeners import Listener
    from smtpd_fork.observe import Companion
    from smtpd_fork.server import Server

__all__ = ["Companions", "companions_of"]

log = logging.getLogger("smtpd_fork.daemon")


def companions_of(
    config: DaemonConfig,  # noqa: ARG001 - what is opened by now says enough
    server: Server,
    *,
    control: Listener | None,
    drain: Callable[[float | None], None],
) -> Iterator[Companion]:
    """Return what *config* wants beside *server*, in the order in which it begins.

    :param control: the control socket, opened while there were privileges to do so
    :param drain: has the daemon end with its last session, or after so many seconds
    :raises SmtpdForkError: one of them cannot be
    """
    yield LogKeeper()
    if control is not None:
        yield Control(control, server, drain)


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
