"""NATS: publish each message to a stream of JetStream, for workers.

250 means that the stream has acknowledged the message (PubAck). A message that the client sends
again has the same ``Nats-Msg-Id``, so that within the stream's duplicate window it is stored once.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from aiosmtpd.smtp import MISSING, Envelope
from aiosmtpd.smtp import Session as AnySession

from smtpd_fork.errors import CannotCreateError, MissingLibraryError
from smtpd_fork.hops.server_certificates import absolute, tls_context
from smtpd_fork.message import Mail
from smtpd_fork.sanitizer import HIDDEN
from smtpd_fork.setting_types import Count, FilePath, Seconds, Secret, SettingError, Text
from smtpd_fork.sinks.mail_json import delivery_key, envelope_fits, envelope_json
from smtpd_fork.sinks.server_sink import TOO_MANY, NotDeliveredError, ServerDownError, ServerSink

try:
    from nats.js.errors import APIError, NotFoundError

    from smtpd_fork.sinks.nats_connection import ERRORS, Connection, Pieces, reason_of, size_of
except ImportError:  # the constructor reports it
    INSTALLED = False
else:
    INSTALLED = True

if TYPE_CHECKING:
    from nats.js.api import StreamConfig

__all__ = ["Nats"]

VERSION = "1"
"""The version of the header fields of a message."""

TOO_LARGE = "552 5.3.4 The message is too large for the destination"

LONGEST_RECIPIENTS = 50_000
"""Maximum bytes of the recipients as JSON; JetStream accepts headers of up to 64 KiB."""

MESSAGE_TOO_LARGE = 10054
"""JetStream's error code for a message that exceeds the limit of the stream."""

SHORTEST_WINDOW = 3600.0
"""Seconds of a duplicate window below which a warning is logged: a client that gets 451 sends the
message again within minutes or hours."""


class Nats(ServerSink):
    """Publishes messages to a stream of NATS JetStream.

    The body is the message; header fields are ``Mail-Version`` (1), ``Mail-Envelope`` (JSON) and
    ``Nats-Msg-Id`` (the idempotency key). By default NATS accepts messages of up to 1 MB
    (``max_payload``); larger ones are refused with 552.

    :param url: ``nats://HOST:PORT``, or ``tls://`` for TLS
    :param subject: the subject of the messages, which has to belong to a stream
    :param stream: the name of the stream; default: the stream of the subject
    :param username: user name
    :param password: password of the user
    :param token: token, instead of user name and password
    :param require: ``file``: the stream has to use file storage; ``nothing``: a warning is logged
        if it does not
    :param timeout: seconds for one message
    :param connections: maximum messages in progress, over one connection; others wait
    :param wait: seconds that a message waits before it gets 451
    :param ca_file: file of CA certificates to verify the server's certificate with; default: the
        system's
    """

    log = logging.getLogger("smtpd_fork.nats")

    def __init__(
        self,
        url: Text,
        *,
        subject: Text = "mail",
        stream: str | None = None,
        username: str | None = None,
        password: Secret | None = None,
        token: Secret | None = None,
        require: Literal["nothing", "file"] = "file",
        timeout: Seconds = 30.0,
        connections: Count = 100,
        wait: Seconds = 5.0,
        ca_file: FilePath | None = None,
    ) -> None:
        if not INSTALLED:
            raise MissingLibraryError("nats", ["nats-py"], "nats")
        if require not in {"nothing", "file"}:
            raise SettingError("require", require, "expected nothing or file")
        if not _is_subject(subject):
            reason = "expected words separated by dots, without wildcards"
            raise SettingError("subject", subject, reason)
        self._url, login = _read_url(url)
        name = f"the subject {subject} of NATS at {urlsplit(self._url).netloc}"
        super().__init__(name, timeout=timeout, connections=connections, wait=wait)
        given = {"user": username, "password": password, "token": token}
        login.update({key: value for key, value in given.items() if value is not None})
        self._options: dict[str, Any] = login
        self._subject = subject
        self._wanted_stream = stream
        self._require = require
        self._ca_file = absolute(ca_file)
        self._stream = ""
        self._largest: int | None = None
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._renew = False
        self._warned: list[str] = []

    async def close(self) -> None:
        """Close the connection."""
        await super().close()
        await self._disconnect()

    async def probe(self) -> None:
        """Check that the stream exists, and that it keeps messages.

        :raises ServerDownError: NATS cannot be reached
        :raises CannotCreateError: there is no stream, or its settings are not sufficient
        """
        connection = await self._open()
        await connection.close()

    async def handle_RCPT(
        self, server: Any, session: AnySession, envelope: Envelope, address: str, options: list[str]
    ) -> Any:
        """Refuse a recipient that does not fit into the header of the message."""
        if envelope_fits([*envelope.rcpt_tos, address], LONGEST_RECIPIENTS):
            return MISSING
        return TOO_MANY

    async def send(self, mail: Mail) -> str:
        """Publish a message."""
        connection = await self._connected()
        key = await delivery_key(mail)
        headers = {
            "Nats-Msg-Id": key,
            "Mail-Version": VERSION,
            "Mail-Envelope": envelope_json(mail, key).decode(),
        }
        content: Any = Pieces(*mail.relayed())
        size = len(content) + size_of(headers)
        if size > min(connection.largest, self._largest or connection.largest):
            raise NotDeliveredError(f"{size} bytes exceed the limit of the stream", TOO_LARGE)
        stream = connection.stream(2 * self.timeout)  # longer than the timeout of the sink
        request = stream.publish(self._subject, content, headers=headers, stream=self._stream)
        try:
            await connection.answer(request)
        except APIError as error:
            if error.err_code == MESSAGE_TOO_LARGE:
                raise NotDeliveredError(reason_of(error), TOO_LARGE) from None
            raise NotDeliveredError(reason_of(error)) from None
        except ERRORS as error:
            raise ServerDownError(reason_of(error)) from None
        return f"250 2.0.0 Ok: queued as {mail.id}"

    def renew_connections(self) -> None:
        """Send the next message over a new connection."""
        self._renew = True

    async def _connected(self) -> Connection:
        """Return the connection; make a new one if it is lost or has to be renewed."""
        async with self._connecting:
            if self._connection is None or self._renew or not self._connection.usable:
                await self._disconnect()
                self._connection = await self._open()
                self._renew = False
            return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _open(self) -> Connection:
        options = dict(self._options)
        if self._url.startswith("tls:"):
            options["tls"] = await asyncio.to_thread(tls_context, self._ca_file)
        try:
            connection = await Connection.open(self._url, options)
        except OSError as error:
            raise ServerDownError(str(error)) from None
        try:
            await self._check_stream(connection)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _check_stream(self, connection: Connection) -> None:
        stream = connection.stream(2 * self.timeout)  # longer than the timeout of the sink
        try:
            name = await connection.answer(stream.find_stream_name_by_subject(self._subject))
            config = (await connection.answer(stream.stream_info(name))).config
        except NotFoundError:
            raise CannotCreateError(
                f"{self.server}: no stream has the subject {self._subject}; create one"
            ) from None
        except ERRORS as error:
            raise ServerDownError(f"JetStream: {reason_of(error)}") from None
        if self._wanted_stream not in {None, name}:
            raise CannotCreateError(f"{self.server}: the subject belongs to the stream {name}")
        weakness, warnings = assess(config, self._require)
        if weakness:
            raise CannotCreateError(f"{self.server}: the stream {name} {weakness}")
        for warning in warnings:
            if warning not in self._warned:
                self.log.warning("%s: the stream %s %s", self.server, name, warning)
        self._warned, self._stream = warnings, name
        largest = config.max_msg_size
        self._largest = largest if largest is not None and largest > 0 else None


def assess(config: StreamConfig, require: str) -> tuple[str, list[str]]:
    """Return the reason why a stream cannot be used, or an empty string; and warnings."""
    if config.no_ack:
        return "does not acknowledge messages (no_ack)", []
    warnings = []
    if config.storage != "file":
        loss = "is in memory: a crash of NATS loses messages that were answered 250"
        if require == "file":
            return f"{loss} (require is file)", []
        warnings.append(loss)
    limits = (config.max_msgs, config.max_bytes, config.max_age, config.max_msgs_per_subject)
    if config.discard == "old" and any((limit or 0) > 0 for limit in limits):
        warnings.append("has limits and discards old messages, even if no worker has read them")
    window = config.duplicate_window
    if window < SHORTEST_WINDOW:
        again = "a message that the client sends again later is stored twice"
        warnings.append(f"has a duplicate window of {window:g} s: {again}")
    return "", warnings


def _is_subject(text: str) -> bool:
    words = text.split(".")
    return text.isprintable() and all(words) and not any(c in text for c in " *>")


def _read_url(url: str) -> tuple[str, dict[str, Any]]:
    """Split a URL into the URL without credentials, and options of nats-py for these.

    :raises SettingError: it is not a valid URL of NATS
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    host = parts.hostname
    rest = parts.path.strip("/") or parts.query or parts.fragment
    if parts.scheme not in {"nats", "tls"} or not host or rest or not url.isprintable():
        raise SettingError("url", HIDDEN, "write nats://HOST:PORT or tls://HOST:PORT")
    netloc = f"[{host}]" if ":" in host else host
    login: dict[str, Any] = {}
    if parts.username is not None and parts.password is None:
        raise SettingError("url", HIDDEN, "write the token as the key token, which is never shown")
    if parts.username is not None:
        login.update(user=unquote(parts.username), password=unquote(parts.password or ""))
    return f"{parts.scheme}://{netloc}:{port or 4222}", login
