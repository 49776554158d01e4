"""Servers: several rspamd servers, which are tried in order.

A server that is down is skipped for a time that doubles with each failure; then one message tries
it again. A server counts as down only if it has answered no request since the failed request began:
a single message that makes a request fail does not disable the server for other messages.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from smtpd_fork.errors import HandlerError
from smtpd_fork.hops.address import parse_hop_address
from smtpd_fork.hops.http import WebServer, read_url
from smtpd_fork.hops.http_connection import AnswerTooLongError, ConnectionEndedError, HttpError
from smtpd_fork.hops.peer_status import Outage
from smtpd_fork.hops.probe import PROBE_SECONDS, probe_in_thread
from smtpd_fork.hops.server_certificates import absolute
from smtpd_fork.sanitizer import HIDDEN
from smtpd_fork.setting_types import SettingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["LONGEST_ANSWER", "RspamdDownError", "Servers"]

log = logging.getLogger("smtpd_fork.rspamd")

LONGEST_ANSWER = 4 << 20
"""Maximum bytes of an answer. An answer with all symbols has some ten thousand, and the hosts and
addresses of all URLs of the message: up to 10,240 (``max_urls``) of 320 bytes. A client must not be
able to have its message unchecked because of them, with ``when-down = "accept"``."""

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
"""First and maximum number of seconds for which a server that is down is skipped."""

UNIX = "unix:"
OK = 200
_FORBIDDEN = {401, 403}


class RspamdDownError(Exception):
    """No server answers."""


class Server:
    """A server.

    :param name: the name for the log
    :param web: the HTTP client for the URL that checks messages
    :ivar busy: number of requests in progress
    """

    def __init__(self, name: str, web: WebServer) -> None:
        self.name = name
        self.web = web
        self.busy = 0
        self._outage = Outage()
        self._pause = 0.0
        self._next_attempt = 0.0
        self._is_tried = False
        self._answered = 0.0

    async def ask(
        self, fields: Sequence[tuple[str, str]], body: bytes, seconds: float
    ) -> tuple[int, bytes]:
        """Send a request; return status and body of the answer.

        :raises RspamdDownError: the server does not answer, or is skipped now
        """
        tries = self._outage.since is not None
        if tries:
            if self._is_tried or time.monotonic() < self._next_attempt:
                raise RspamdDownError(self._outage.reason)
            self._is_tried = True
        begun = time.monotonic()
        self.busy += 1
        try:
            async with asyncio.timeout(seconds):
                try:
                    answer = await self.web.ask(fields, body, LONGEST_ANSWER)
                except ConnectionEndedError:  # the server has just closed an idle connection
                    answer = await self.web.ask(fields, body, LONGEST_ANSWER)
        except TimeoutError:
            raise self._failed(f"no answer within {seconds:g} s", begun) from None
        except AnswerTooLongError as error:
            raise RspamdDownError(str(error)) from None
        except HttpError as error:
            raise self._failed(str(error), begun) from None
        finally:
            self.busy -= 1
            if tries:
                self._is_tried = False
        self._is_up()
        return answer

    def _failed(self, reason: str, begun: float) -> RspamdDownError:
        if self._answered <= begun:
            self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)
            self._next_attempt = time.monotonic() + self._pause
            if self._outage.begin(reason):
                log.warning("rspamd %s is down: %s", self.name, reason)
        return RspamdDownError(reason)

    def _is_up(self) -> None:
        self._answered, self._pause = time.monotonic(), 0.0
        if (seconds := self._outage.end()) is not None:
            log.warning("rspamd %s is up again, after %.0f s", self.name, seconds)


class Servers:
    """Servers in order.

    :param urls: URLs of workers that serve ``/checkv2``, or ``unix:PATH``
    :param password: the password of the workers
    :param seconds: timeout of an answer
    :param connections: maximum connections to each server
    :param ca_file: file of CA certificates; None: the system's
    :raises SettingError: a URL is not valid
    :raises MissingLibraryError: httptools is not installed
    """

    def __init__(
        self, urls: Sequence[str], *, password: str | None, seconds: float, connections: int,
        ca_file: str | None,
    ) -> None:  # fmt: skip
        if not urls:
            raise SettingError("url", "", "write http://HOST:PORT or unix:PATH")
        bases = [_base(url) for url in urls]
        self._secrets = [] if password is None else [("Password", password)]
        self._seconds = seconds
        self._connections = connections
        self._ca_file = absolute(ca_file)
        self._servers = [Server(base, self._web(base, "checkv2")) for base in bases]
        self._checked = False

    def _web(self, base: str, path: str) -> WebServer:
        socket = base.removeprefix(UNIX) if base.startswith(UNIX) else ""
        return WebServer(
            f"{'http://localhost' if socket else base}/{path}",
            connections=self._connections,
            ca_file=self._ca_file,
            extra="rspamd",
            path=socket,
        )

    @property
    def busy(self) -> int:
        """The number of requests in progress."""
        return sum(server.busy for server in self._servers)

    def __str__(self) -> str:
        return ", ".join(server.name for server in self._servers)

    async def ask(self, fields: Iterable[tuple[str, str]], body: bytes) -> bytes:
        """Return the answer of the first server that answers.

        :raises RspamdDownError: no server answers
        """
        fields = [*fields, *self._secrets]
        reasons = []
        for server in self._servers:
            try:
                status, answer = await server.ask(fields, body, self._seconds)
            except RspamdDownError as error:
                reason = str(error)
            else:
                if status == OK:
                    return answer
                refused = status in _FORBIDDEN
                reason = f"it answers {status}" + (" (wrong password?)" if refused else "")
            reasons.append(f"{server.name}: {reason}" if len(self._servers) > 1 else reason)
        raise RspamdDownError("; ".join(reasons))

    # -- before the first message ------------------------------------------------------------------

    def check(self) -> None:
        """Check that the servers answer and accept the password; log those that are down.

        :raises CannotCreateError: the CA certificates cannot be read
        :raises HandlerError: a server refuses the password
        """
        for server in self._servers:
            server.web.read_certificates()
        reason = f"no answer within {PROBE_SECONDS:g} s"
        reasons = {server.name: reason for server in self._servers}

        async def probe(base: str) -> None:
            try:
                await self._probe(base)
            except HttpError as error:
                reasons[base] = str(error)
            else:
                del reasons[base]

        async def probe_all() -> None:
            await asyncio.gather(*map(probe, list(reasons)))

        with suppress(TimeoutError):
            probe_in_thread(probe_all)
        for base, reason in reasons.items():
            log.warning("rspamd %s: %s; it is skipped until it answers", base, reason)

    def prepare(self) -> None:
        """Call :meth:`check` the first time; do nothing later."""
        if not self._checked:
            self.check()
            self._checked = True

    async def _probe(self, base: str) -> None:
        ping, login = self._web(base, "ping"), self._web(base, "auth")
        try:
            answer = await ping.ask([], b"", LONGEST_ANSWER, method="GET")
            if answer.status != OK:
                raise HttpError(f"it answers {answer.status}")
            if self._secrets:  # only a controller worker has this page, others answer 404
                answer = await login.ask(self._secrets, b"", LONGEST_ANSWER, method="GET")
                if answer.status in _FORBIDDEN:
                    raise HandlerError(f"rspamd {base} refuses the password")
        finally:
            await ping.close()
            await login.close()

    async def close(self) -> None:
        """Close the connections."""
        for server in self._servers:
            await server.web.close()


def _base(url: str) -> str:
    """Return the URL of a worker without the path of requests, or ``unix:PATH``.

    :raises SettingError: the URL is not valid
    """
    if url.startswith(UNIX):
        try:
            return str(parse_hop_address(url, default_port=None))
        except SettingError as error:
            raise SettingError("url", error.value, error.reason) from None
    bare, login = read_url(url)
    if login is not None or "?" in bare:
        raise SettingError(
            "url", HIDDEN, "write http://HOST:PORT, and the password as the key password"
        )
    return bare.rstrip("/").removesuffix("/checkv2").rstrip("/")
