"""The HTTP server of ``--metrics``: metrics, health checks and the status page."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from smtpd_fork.observe.http import Answer, Front
from smtpd_fork.observe.metrics import Metrics
from smtpd_fork.observe.service import Service, metrics_name
from smtpd_fork.observe.snapshot import Snapshots
from smtpd_fork.observe.status_page import POLICY, as_json, render

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from aiohttp import web

    from smtpd_fork.listeners import Listener
    from smtpd_fork.observe.snapshot import Watched

__all__ = ["StatusServer"]

log = logging.getLogger("smtpd_fork.observe")


class StatusServer(Service):
    """Serves ``/metrics``, ``/healthz``, ``/readyz``, ``/status.json`` and the page at ``/``.

    :param server: the server that is observed
    :param listeners: where; closed at the end
    """

    def __init__(self, server: Watched, listeners: Sequence[Listener]) -> None:
        self._snapshots = Snapshots(server)
        self._metrics = Metrics(server.tally)
        self._listeners = listeners
        self._hostname = server.config.hostname
        self._answers = self._ended = False
        self._front = Front(
            listeners,
            {
                "/": self._page,
                "/status.json": self._json,
                "/metrics": self._figures,
                "/healthz": self._health,
                "/readyz": self._readiness,
            },
        )

    async def start(self) -> None:
        """Begin; the server serves."""
        self._snapshots.start()
        if not any(listener.inherited for listener in self._listeners):
            await self.serving()  # else they are another process's until that lets go

    async def serving(self) -> None:
        """Answer, also who asks where the process did that this one took the place of."""
        if not self._answers:
            self._answers = True
            self._front.start()
            for listener in self._listeners:
                log.info("metrics on %s", listener)

    def sockets(self) -> dict[str, socket.socket]:
        """Return those that a new process goes on with."""
        return {
            metrics_name(listener.address, number): listener.sock
            for number, listener in enumerate(self._listeners)
        }

    async def handed_over(self, pid: int) -> None:
        """Leave the questions to the process that serves now."""
        for listener in self._listeners:
            listener.let_go()
        await self._cease()

    async def _cease(self) -> None:
        if not self._ended:
            self._ended = True
            await self._front.stop()

    async def stopping(self) -> None:
        """Be ready no more; the rest is told until the end."""
        self._snapshots.state = "stopping"

    async def stop(self) -> None:
        """End."""
        self._snapshots.stop()
        await self._cease()

    async def _page(self, _: web.BaseRequest) -> Answer:
        body = render(await self._snapshots.latest(), self._hostname)
        return Answer(body, "text/html; charset=utf-8", policy=POLICY)

    async def _json(self, _: web.BaseRequest) -> Answer:
        return Answer(as_json(await self._snapshots.latest(), self._hostname), "application/json")

    async def _figures(self, request: web.BaseRequest) -> Answer:
        snapshot = await self._snapshots.latest()
        return Answer(*self._metrics.page(snapshot, request.headers.get("Accept", "")))

    async def _health(self, _: web.BaseRequest) -> Answer:
        return Answer(b"ok\n")  # that it is answered is the answer: the loop lives

    async def _readiness(self, _: web.BaseRequest) -> Answer:
        now = self._snapshots.now
        return Answer(f"{now}\n".encode(), status=200 if now == "serving" else 503)
