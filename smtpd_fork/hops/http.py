"""WebServer: requests to an HTTP server, over connections that are kept."""

from __future__ import annotations

import asyncio
import os
from base64 import b64encode
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

from smtpd_fork.errors import MissingLibraryError
from smtpd_fork.hops.server_certificates import absolute, tls_context
from smtpd_fork.sanitizer import HIDDEN, printable
from smtpd_fork.setting_types import SettingError

try:
    import aiohttp
except ImportError:  # the constructor says so
    INSTALLED = False
else:
    INSTALLED = True

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Iterable

    Body = bytes | AsyncIterator[bytes | memoryview]

__all__ = [
    "AnswerTooLongError", "ConnectionEndedError", "HttpAnswer", "HttpError", "WebServer",
    "read_url", "streamed",
]  # fmt: skip

CONNECT_SECONDS = 10.0

LARGE = 1 << 18
"""Bytes that are sent at once: a fraction of a millisecond."""


_HEADERS = {"User-Agent": "smtpd-fork", "Accept": "*/*", "Accept-Encoding": "identity"}
"""A compressed answer could be small, and grow without limit."""


class HttpError(Exception):
    """There is no answer, or none that is HTTP; the text says why, and shows no secret."""


class AnswerTooLongError(HttpError):
    """The answer is longer than it may be."""


class ConnectionEndedError(HttpError):
    """The server has ended the connection before it answered: an idle one, perhaps."""


class HttpAnswer(NamedTuple):
    """An answer, read to its end."""

    status: int
    body: bytes


class WebServer:
    """A server, and the connections to it.

    :param url: without user name and password
    :param connections: requests at once
    :param ca_file: certificates of CAs that the server's certificate is verified with; None: the
        system's
    :param extra: of this package, for one who has not installed aiohttp
    :param path: of a unix socket, which is connected to instead of the host in *url*
    """

    def __init__(
        self, url: str, *, connections: int, ca_file: str | None, extra: str, path: str = ""
    ) -> None:
        if not INSTALLED:
            raise MissingLibraryError(extra, ["aiohttp"], extra)
        self.url = url
        self._path = path
        self._most = connections
        self._ca_file = absolute(ca_file)
        self._tls: ssl.SSLContext | None = None
        self._session: aiohttp.ClientSession | None = None

    @property
    def shown(self) -> str:
        """The URL, without its query, which may hold a secret."""
        return self.url.partition("?")[0]

    def read_certificates(self) -> None:
        """Read the CAs' certificates, if there is TLS. Blocks.

        :raises CannotCreateError: they cannot be read
        """
        if self.url.startswith("https:"):
            self._tls = tls_context(self._ca_file)

    async def ask(
        self, headers: Iterable[tuple[str, str]], body: Body, longest: int, *, method: str = "POST"
    ) -> HttpAnswer:
        """Send a request, and read the answer to its end. Redirects are not followed.

        :param body: bytes, or an asynchronous iterator of pieces
        :param longest: bytes of the answer
        :raises HttpError: there is no answer, or none that is HTTP
        :raises CannotCreateError: the CAs' certificates cannot be read
        """
        if isinstance(body, bytes) and len(body) > LARGE:
            view = memoryview(body)
            body = streamed(view[at : at + LARGE] for at in range(0, len(body), LARGE))
            headers = [*headers, ("Content-Length", str(len(view)))]
        session = await self._connections()
        try:
            async with session.request(
                method, self.url, data=body, headers=headers, allow_redirects=False
            ) as answer:
                pieces, size = [], 0
                async for piece in answer.content.iter_any():
                    size += len(piece)
                    if size > longest:
                        answer.close()
                        raise AnswerTooLongError(f"the answer has more than {longest} bytes")
                    pieces.append(piece)
                return HttpAnswer(answer.status, b"".join(pieces))
        except (aiohttp.ClientError, OSError) as error:
            ended = isinstance(error, aiohttp.ServerDisconnectedError)
            ended = ended or type(error) is aiohttp.ClientOSError
            raise (ConnectionEndedError if ended else HttpError)(_reason(error)) from None

    async def _connections(self) -> aiohttp.ClientSession:
        if self._tls is None and self.url.startswith("https:"):
            await asyncio.to_thread(self.read_certificates)
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=self._connector(),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                auto_decompress=False,
                trust_env=False,  # no proxy of the environment
                headers=_HEADERS,
            )
        return self._session

    def _connector(self) -> aiohttp.BaseConnector:
        if self._path:
            return aiohttp.UnixConnector(self._path, limit=self._most)
        return aiohttp.TCPConnector(limit=self._most, ssl=self._tls or True)

    async def close(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


async def streamed(pieces: Iterable[bytes | memoryview]) -> AsyncIterator[bytes | memoryview]:
    """Yield the pieces of a body, and let others have their turn."""
    for piece in pieces:
        yield piece
        if len(piece) >= LARGE:
            # To a server that reads as fast as we send, nothing else would wait.
            await asyncio.sleep(0)


def _reason(error: Exception) -> str:
    """Return the text of an error, without the URL, whose query may hold a secret.

    What is no HTTP is not shown either: it may be the request, which a server has sent back.
    """
    if isinstance(error, (aiohttp.ClientResponseError, aiohttp.ClientPayloadError)):
        return f"{type(error).__name__}: the answer is not HTTP, or was cut off"
    if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(
        error, aiohttp.ClientSSLError
    ):
        number = error.os_error.errno
        if number is not None and number > 0:
            return os.strerror(number)  # without the address, which the log has already
    text = str(error)
    return printable(f"{type(error).__name__}: {text}".strip(" :").replace("\n", " "))


def read_url(url: str) -> tuple[str, str | None]:
    """Return a URL without user name and password, and these as ``Authorization`` (RFC 7617).

    :raises SettingError: it is none of HTTP
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
