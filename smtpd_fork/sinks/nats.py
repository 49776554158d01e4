"""NATS: publishes each message to a stream of JetStream, for workers.

250 means that the stream has acknowledged the message (PubAck). A message that the client sends
again has the same ``Nats-Msg-Id``: within the stream's duplicate window it is stored once.
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
except ImportError:  # the constructor says so
    INSTALLED = False
else:
    INSTALLED = True

if TYPE_CHECKING:
    from nats.js.api import StreamConfig

__all__ = ["Nats"]

VERSION = "1"
"""Of the header fields of a message."""

TOO_LARGE = "552 5.3.4 The message is too large for the destination"

LONGEST_RECIPIENTS = 50_000
"""Bytes as JSON: JetStream takes headers of 64 KiB."""

MESSAGE_TOO_LARGE = 10054
"""JetStream's code of an error: the message is larger than the stream takes."""

SHORTEST_WINDOW = 3600.0
"""Seconds; a client that gets 451 sends the message again within minutes or hours."""


class Nats(ServerSink):
    """Publishes messages to a stream of NATS JetStream.

    The body is the message; header fields are ``Mail-Version`` (1), ``Mail-Envelope`` (JSON) and
    ``Nats-Msg-Id`` (the idempotency key). NATS takes messages of 1 MB, unless its ``max_payload``
    says otherwise: larger ones are refused with 552.

    :param url: ``nats://HOST:PORT``, or ``tls://`` for TLS
    :param subject: of the messages; a stream has to have it
    :param stream: the stream; default: the one that has the subject
    :param username: of a user
    :param password: of the user
    :param token: instead of a user
    :param require: ``file``: the stream has to be on file storage; ``nothing``: a warning says that
        it is not
    :param timeout: seconds for one message
    :param connections: messages that are on their way at once, over one connection; others wait
    :param wait: seconds that a message waits for its turn
    :param ca_file: certificates of the CAs that the server's certificate is verified with;
        default: the system's
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
            raise SettingError("subject", subject, "expected words with dots, without wildcards")
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
        self._doubtful = False
        self._warned: list[str] = []

    async def close(self) -> None:
        """Close the connection."""
        await super().close()
        await self._disconnect()

    async def look(self) -> None:
        """See whether there is a stream, and whether it keeps messages.

        :raises ServerDownError: NATS cannot be reached
        :raises CannotCreateError: there is no stream, or it is not as it has to be
        """
        connection = await self._open()
        await connection.close()

    async def handle_RCPT(
        self, server: Any, session: AnySession, envelope: Envelope, address: str, options: list[str]
    ) -> Any:
        """Refuse a recipient for whom the header of the message has no space."""
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
            raise NotDeliveredError(f"{size} bytes are more than the stream takes", TOO_LARGE)
        stream = connection.stream(2 * self.timeout)  # the sink's own limit ends first
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

    def distrust(self) -> None:
        """Have the next message sent over another connection."""
        self._doubtful = True

    async def _connected(self) -> Connection:
        """Return the connection, which is made anew if it is lost or doubtful."""
        async with self._connecting:
            if self._connection is None or self._doubtful or not self._connection.usable:
                await self._disconnect()
                self._connection = await self._open()
                self._doubtful = False
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
            await self._look_at(connection)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _look_at(self, connection: Connection) -> None:
        stream = connection.stream(2 * self.timeout)  # the sink's own limit ends first
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
            raise CannotCreateError(f"{self.server}: it belongs to the stream {name}")
        weak, warnings = judge(config, self._require)
        if weak:
            raise CannotCreateError(f"{self.server}: the stream {name} {weak}")
        for warning in warnings:
            if warning not in self._warned:
                self.log.warning("%s: the stream %s %s", self.server, name, warning)
        self._warned, self._stream = warnings, name
        largest = config.max_msg_size
        self._largest = largest if largest is not None and largest > 0 else None


def judge(config: StreamConfig, require: str) -> tuple[str, list[str]]:
    """Return why a stream cannot be used, empty if it can; and warnings."""
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
        warnings.append("has limits and discards old messages, also if no worker has had them")
    window = config.duplicate_window
    if window < SHORTEST_WINDOW:
        again = "a message that the client sends again later is stored twice"
        warnings.append(f"has a duplicate window of {window:g} s: {again}")
    return "", warnings


def _is_subject(text: str) -> bool:
    words = text.split(".")
    return text.isprintable() and all(words) and not any(c in text for c in " *>")


def _read_url(url: str) -> tuple[str, dict[str, Any]]:
    """Return a URL without user name and password, and these as nats-py's options.

    :raises SettingError: it is none of NATS
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
        raise SettingError("url", HIDDEN, "a token belongs to the key token, which is not shown")
    if parts.username is not None:
        login.update(user=unquote(parts.username), password=unquote(parts.password or ""))
    return f"{parts.scheme}://{netloc}:{port or 4222}", login
