"""StatusServer: the HTTP service of ``--metrics``: metrics, health checks and the status page."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from smtpd_fork.observe.http_server import Answer, HttpServer
from smtpd_fork.observe.metrics import Metrics
from smtpd_fork.observe.service import Observed, Service, metrics_name
from smtpd_fork.observe.snapshot import Snapshots
from smtpd_fork.observe.status_page import POLICY, as_json, render

if TYPE_CHECKING:
    from aiohttp import web

    from smtpd_fork.listeners import Listener

__all__ = ["StatusServer"]

log = logging.getLogger("smtpd_fork.observe")


class StatusServer(Service):
    """Serves ``/metrics``, ``/healthz``, ``/readyz``, ``/status.json`` and the page at ``/``.

    :param listeners: the listening sockets; :meth:`stop` closes them
    :param snapshots: provides the state to show; default: that of *server*
    :param values: returns the values of the metrics; default: those of *server*
    """

    def __init__(
        self,
        server: Observed,
        listeners: Sequence[Listener],
        snapshots: Snapshots | None = None,
        values: Callable[[], Awaitable[Mapping[str, object]]] | None = None,
    ) -> None:
        self._snapshots = snapshots or Snapshots(server)
        self._metrics = Metrics(server.tally)
        self._values = values or self._own_values
        self._listeners = listeners
        self._hostname = server.config.hostname
        self._http: HttpServer | None = None
        self._pages = {
            "/": self._page,
            "/status.json": self._json,
            "/metrics": self._metrics_page,
            "/healthz": self._health,
            "/readyz": self._readiness,
        }

    async def start(self) -> None:
        """Start; answer requests, unless the old process of an upgrade still does."""
        self._snapshots.start()
        if not any(listener.inherited for listener in self._listeners):
            await self.serving()

    async def serving(self) -> None:
        """Answer requests, also those that arrived while the old process answered."""
        if self._http is None:
            self._http = HttpServer(self._listeners, self._pages)
            for listener in self._listeners:
                log.info("metrics on %s", listener)

    def sockets(self) -> dict[str, socket.socket]:
        """Return the listening sockets."""
        return {
            metrics_name(listener.address, number): listener.sock
            for number, listener in enumerate(self._listeners)
        }

    async def handed_over(self, pid: int) -> None:
        """Leave further requests to the new process."""
        for listener in self._listeners:
            listener.hand_over()
        await self._stop_answering()

    async def _stop_answering(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            await http.stop()

    async def stopping(self) -> None:
        """Answer 503 for ``/readyz`` from now on; the other pages stay available until the end."""
        self._snapshots.state = "stopping"

    async def stop(self) -> None:
        """Close the listeners and all connections."""
        self._snapshots.stop()
        await self._stop_answering()

    async def _page(self, _: web.BaseRequest) -> Answer:
        body = render(await self._snapshots.latest(), self._hostname)
        return Answer(body, "text/html; charset=utf-8", policy=POLICY)

    async def _json(self, _: web.BaseRequest) -> Answer:
        body = as_json(await self._snapshots.latest(), self._hostname)
        return Answer(body, "application/json")

    async def _metrics_page(self, request: web.BaseRequest) -> Answer:
        values = await self._values()
        return Answer(*self._metrics.page(values, request.headers.get("Accept", "")))

    async def _own_values(self) -> Mapping[str, object]:
        return self._metrics.values(await self._snapshots.latest())

    async def _health(self, _: web.BaseRequest) -> Answer:
        return Answer(b"ok\n")  # any answer shows that the event loop runs

    async def _readiness(self, _: web.BaseRequest) -> Answer:
        now = await self._snapshots.readiness()
        return Answer(f"{now}\n".encode(), status=200 if now == "serving" else 503)
