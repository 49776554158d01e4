"""WebServer: send requests to an HTTP server over persistent connections."""

from __future__ import annotations

import asyncio
import os
import ssl
from base64 import b64encode
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from smtpd_fork.errors import MissingLibraryError
from smtpd_fork.hops.http_connection import (
    INSTALLED,
    LARGE,
    ConnectionEndedError,
    HttpConnection,
    HttpError,
)
from smtpd_fork.hops.idle import Idle
from smtpd_fork.hops.server_certificates import absolute, tls_context
from smtpd_fork.sanitizer import HIDDEN, printable
from smtpd_fork.setting_types import SettingError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smtpd_fork.hops.http_connection import Body, HttpAnswer

__all__ = ["WebServer", "read_url"]

CONNECT_SECONDS = 10.0

IDLE_SECONDS = 15.0
"""Seconds that an idle connection is kept; servers close theirs after some seconds or minutes."""

_HEADERS = ("User-Agent: smtpd-fork", "Accept: */*", "Accept-Encoding: identity")
"""Headers of all requests. No compression: a small compressed answer could expand without limit."""

_UNQUOTED = "%!$&'()*+,;=:@/?~"
"""Characters that are allowed in a path and a query (RFC 3986 3.3); ``%`` is quoted already."""


class WebServer:
    """An HTTP server, and the connections to it.

    :param url: the URL without user name and password
    :param connections: maximum concurrent requests
    :param ca_file: file of CA certificates to verify the server's certificate with; None: the
        system's
    :param extra: the extra of this package that installs httptools, for the error message
    :param path: the path of a unix socket to connect to instead of the host in *url*
    """

    def __init__(
        self, url: str, *, connections: int, ca_file: str | None, extra: str, path: str = ""
    ) -> None:
        if not INSTALLED:
            raise MissingLibraryError(extra, ["httptools"], extra)
        self.url = url
        self._path = path
        self._ca_file = absolute(ca_file)
        self._tls: ssl.SSLContext | None = None
        self._target = _request_target(url)
        self._slots = asyncio.Semaphore(connections)
        self._open: set[HttpConnection] = set()
        self._idle = Idle(IDLE_SECONDS, HttpConnection.close)

    @property
    def shown(self) -> str:
        """The URL for the log, without its query, which may contain a secret."""
        return self.url.partition("?")[0]

    def read_certificates(self) -> None:
        """Read the CA certificates if the URL is https. Blocks.

        :raises CannotCreateError: they cannot be read
        """
        if self.url.startswith("https:"):
            self._tls = tls_context(self._ca_file)

    async def ask(
        self, headers: Iterable[tuple[str, str]], body: Body, longest: int, *, method: str = "POST"
    ) -> HttpAnswer:
        """Send a request, and return the whole answer. Redirects are not followed.

        :param headers: header fields; they include Content-Length unless the body is bytes
        :param body: the body, as bytes or in pieces
        :param longest: maximum bytes of the answer's body
        :raises HttpError: no answer was received, or it is not HTTP
        :raises CannotCreateError: the CA certificates cannot be read
        :raises ValueError: a header field contains a line end or a NUL
        """
        head = self._head(method, headers, len(body) if isinstance(body, bytes) else None)
        if isinstance(body, bytes) and len(body) > LARGE:
            view = memoryview(body)
            body = (view[at : at + LARGE] for at in range(0, len(body), LARGE))
        async with self._slots:
            connection = self._take_idle() or await self._connect()
            try:
                return await connection.ask(head, body, longest)
            except ConnectionEndedError:
                self._idle.end_all()  # the server has probably closed the others as well
                raise
            finally:
                if connection.usable:
                    self._idle.add(connection)

    def _head(self, method: str, headers: Iterable[tuple[str, str]], length: int | None) -> bytes:
        lines = [f"{method} {self._target}", *(f"{name}: {value}" for name, value in headers)]
        if length is not None:
            lines.append(f"Content-Length: {length}")
        text = "\r\n".join([*lines, "", ""])
        ends = len(lines) + 1 + len(_HEADERS) + 1
        if text.count("\r") != ends or text.count("\n") != ends or "\0" in text:
            raise ValueError("a header field cannot have a line end or a NUL")
        return text.encode()

    # -- connections -------------------------------------------------------------------------------

    def _take_idle(self) -> HttpConnection | None:
        """Return the usable idle connection that was used last, or None."""
        while (connection := self._idle.take()) is not None:
            if connection.usable:
                return connection
        return None

    async def _connect(self) -> HttpConnection:
        """Return a new connection.

        :raises HttpError: the server cannot be reached
        """
        if self._tls is None and self.url.startswith("https:"):
            await asyncio.to_thread(self.read_certificates)
        connection = HttpConnection(self._open.discard)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._dial(connection)
        except TimeoutError:
            raise HttpError(f"no connection within {CONNECT_SECONDS:g} s") from None
        except OSError as error:
            raise HttpError(_reason(error)) from None
        if connection.usable:
            self._open.add(connection)
        return connection

    async def _dial(self, connection: HttpConnection) -> None:
        loop = asyncio.get_running_loop()
        if self._path:
            await loop.create_unix_connection(lambda: connection, self._path)
            return
        parts = urlsplit(self.url)
        port = parts.port or (443 if self._tls else 80)
        host = parts.hostname or ""
        await loop.create_connection(lambda: connection, host, port, ssl=self._tls)

    async def close(self) -> None:
        """Close the connections."""
        self._idle.end_all()
        for connection in list(self._open):
            connection.close()


def _request_target(url: str) -> str:
    """Return the request line after the method, with the header fields of all requests."""
    parts = urlsplit(url)
    path = quote(parts.path or "/", safe=_UNQUOTED)
    query = f"?{quote(parts.query, safe=_UNQUOTED)}" if parts.query else ""
    host = parts.netloc.encode("idna").decode()
    return "\r\n".join([f"{path}{query} HTTP/1.1", f"Host: {host}", *_HEADERS])


def _reason(error: OSError) -> str:
    """Return the text of an error without the address, which the log line has already."""
    if error.errno is not None and error.errno > 0 and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno)
    return printable(f"{type(error).__name__}: {error}".strip(" :").replace("\n", " "))


def read_url(url: str) -> tuple[str, str | None]:
    """Split a URL into the URL without credentials, and the value of ``Authorization`` (RFC 7617).

    :raises SettingError: it is not a valid http or https URL
    """
    try:
        parts = urlsplit(url)
        port = parts.port
        (parts.hostname or "").encode("idna")
    except ValueError:
        parts, port = urlsplit(""), None
    host = parts.hostname
    if parts.scheme not in {"http", "https"} or not host or not url.isprintable():
        raise SettingError("url", HIDDEN, "write http://HOST/PATH or https://HOST/PATH")
    netloc = f"[{host}]" if ":" in host else host
    bare = urlunsplit(parts._replace(netloc=f"{netloc}:{port}" if port else netloc, fragment=""))
    if parts.username is None:
        return bare, None
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return bare, f"Basic {b64encode(login.encode()).decode()}"
