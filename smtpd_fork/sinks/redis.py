"""Redis: add each message to a stream, for workers (XADD, XREADGROUP).

250 means that Redis has added the message. Whether the message survives a crash of the machine
depends on the settings of Redis. They are checked at the start: weak settings are logged, or they
are an error if ``require`` demands more. A script adds a message and stores its idempotency key in
one step, so that a message which the client sends again after a lost reply is not added again.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qs, urlsplit

from smtpd_fork.errors import CannotCreateError, MissingLibraryError
from smtpd_fork.hops.server_certificates import absolute
from smtpd_fork.message import Mail
from smtpd_fork.sanitizer import HIDDEN
from smtpd_fork.setting_types import (
    Count,
    CountOrZero,
    FilePath,
    Seconds,
    SecondsOrZero,
    Secret,
    SettingError,
    Text,
)  # fmt: skip
from smtpd_fork.sinks.mail_json import delivery_key, envelope_json
from smtpd_fork.sinks.server_sink import NotDeliveredError, ServerDownError, ServerSink

try:
    from redis import exceptions

    from smtpd_fork.redis_connections import ERRORS, connect, reason_of
except ImportError:  # the constructor reports it
    INSTALLED = False
else:
    INSTALLED = True

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio import Redis as Client

__all__ = ["Redis"]

VERSION = 1
"""The version of the fields of an entry."""

LARGEST_ARGUMENT = 512 << 20
"""Maximum bytes of a message: the default of proto-max-bulk-len."""

ADD = """
if KEYS[2] and redis.call('EXISTS', KEYS[2]) == 1 then
  return redis.call('GET', KEYS[2])
end
local most = ARGV[2] == '0' and {} or {'MAXLEN', '~', ARGV[2]}
local words = {KEYS[1]}
for _, word in ipairs(most) do words[#words + 1] = word end
words[#words + 1] = '*'
for index = 3, #ARGV do words[#words + 1] = ARGV[index] end
local id = redis.call('XADD', unpack(words))
if KEYS[2] then redis.call('SET', KEYS[2], id, 'EX', ARGV[1]) end
return id
"""
"""The key is stored last: it must not exist without the entry."""

_ID = re.compile(rb"\d+-\d+")

SETTINGS = ("appendonly", "appendfsync", "maxmemory", "maxmemory-policy", "proto-max-bulk-len")

TOO_LARGE = "552 5.3.4 The message is too large for the destination"
FULL = "452 4.3.1 Insufficient system storage, try again later"


class Redis(ServerSink):
    """Adds messages to a stream of Redis or Valkey.

    An entry has the fields ``version`` (1), ``key`` (the idempotency key), ``envelope`` (JSON) and
    ``content`` (the message).

    :param url: ``redis://HOST:PORT/DB``, ``rediss://`` for TLS, or ``unix:///PATH?db=DB``
    :param stream: the key of the stream
    :param username: user of an ACL; default: Redis's user ``default``
    :param password: password of the user
    :param require: the required durability of Redis: ``nothing``: log a warning if a crash would
        lose messages; ``aof``: an append-only file, so that a crash loses at most what was not yet
        synced; ``fsync``: one that is synced before each answer, so that a crash loses nothing
    :param remember: seconds in which a message that the client sends again is not added again; 0:
        it is always added
    :param maxlen: entries after which the oldest are removed, processed or not; 0: never
    :param timeout: seconds for one message
    :param connections: maximum connections; other messages wait
    :param wait: seconds that a message waits for a connection before it gets 451
    :param ca_file: file of CA certificates to verify the server's certificate with; default: the
        system's
    """

    log = logging.getLogger("smtpd_fork.redis")

    def __init__(
        self,
        url: Text,
        *,
        stream: Text = "mail",
        username: str | None = None,
        password: Secret | None = None,
        require: Literal["nothing", "aof", "fsync"] = "nothing",
        remember: SecondsOrZero = 86400.0,
        maxlen: CountOrZero = 0,
        timeout: Seconds = 30.0,
        connections: Count = 10,
        wait: Seconds = 5.0,
        ca_file: FilePath | None = None,
    ) -> None:
        if not INSTALLED:
            raise MissingLibraryError("redis", ["redis"], "redis")
        if require not in {"nothing", "aof", "fsync"}:
            raise SettingError("require", require, "expected nothing, aof or fsync")
        name = f"the stream {stream} of Redis at {_address(url)}"
        super().__init__(name, timeout=timeout, connections=connections, wait=wait)
        self._url = url
        self._stream = stream
        self._require = require
        self._remember = int(remember + 0.999)
        self._maxlen = maxlen
        self._options: dict[str, Any] = {"timeout": None}  # the sink has its own timeout
        if username is not None:
            self._options["username"] = username
        if password is not None:
            self._options["password"] = password
        if ca_file is not None and url.startswith("rediss:"):
            self._options["ssl_ca_certs"] = absolute(ca_file)
        self._client: Client | None = None
        self._checked = self._renew = False
        self._warned: list[str] = []
        self._largest = LARGEST_ARGUMENT

    async def close(self) -> None:
        """Close the connections."""
        await super().close()
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def probe(self) -> None:
        """Check whether accepted messages survive a crash of Redis; log warnings.

        :raises ServerDownError: Redis cannot be reached
        :raises CannotCreateError: the durability is less than ``require`` demands
        """
        client = connect(self._url, 1, self._options)
        try:
            found = await _settings(client)
        except ERRORS as error:
            raise ServerDownError(reason_of(error)) from None
        finally:
            await client.aclose()
        if (largest := found.get("proto-max-bulk-len", "")).isdigit():
            self._largest = int(largest)
        weakness, warnings = assess(found, self._require)
        if weakness:
            raise CannotCreateError(f"{self.server}: {weakness}")
        for warning in warnings:
            if warning not in self._warned:
                self.log.warning("%s: %s", self.server, warning)
        self._warned, self._checked = warnings, True

    async def send(self, mail: Mail) -> str:
        """Add a message."""
        if not self._checked:
            await self.probe()
        key = await delivery_key(mail)
        content = b"".join(mail.relayed())
        if len(content) > self._largest:
            raise NotDeliveredError(f"the message has {len(content)} bytes", TOO_LARGE)
        entry = ("version", VERSION, "key", key, "envelope", envelope_json(mail, key))
        await self._add(key, *entry, "content", content)
        return f"250 2.0.0 Ok: queued as {mail.id}"

    async def _add(self, key: str, *entry: Any) -> None:
        if self._client is None:
            self._client = connect(self._url, self._connections, self._options)
        if self._renew:
            self._renew = False
            await self._client.connection_pool.disconnect(inuse_connections=False)
        keys = [self._stream, f"{self._stream}:seen:{key}"][: 2 if self._remember else 1]
        arguments = (self._remember, self._maxlen, *entry)
        try:
            answer = await self._client.eval(ADD, len(keys), *keys, *arguments)
        except exceptions.OutOfMemoryError as error:
            raise NotDeliveredError(reason_of(error), FULL) from None
        except ERRORS as error:
            other_server = isinstance(error, exceptions.ReadOnlyError)
            if isinstance(error, exceptions.ResponseError) and not other_server:
                raise NotDeliveredError(reason_of(error)) from None
            raise ServerDownError(reason_of(error)) from None
        if not (isinstance(answer, bytes) and _ID.fullmatch(answer)):
            raise ServerDownError("the answer is not the ID of an entry")

    def renew_connections(self) -> None:
        """Send the next message over a new connection, which may lead to another server."""
        self._checked = False
        self._renew = True


async def _settings(client: Client) -> dict[str, str]:
    """Return the relevant settings; empty if Redis refuses CONFIG GET (managed services)."""
    found: dict[Any, Any] = {}
    await client.ping()
    try:
        for name in SETTINGS:
            found.update(await client.config_get(name))
    except exceptions.ResponseError:
        return {}
    return {_text(name): _text(value) for name, value in found.items()}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def assess(found: Mapping[str, str], require: str) -> tuple[str, list[str]]:
    """Return the reason why the settings are not sufficient, or an empty string; and warnings.

    :param found: settings of Redis by name; empty: not known
    """
    if not found:
        unknown = "CONFIG GET is not permitted: the durability of the stream is not known"
        return ("" if require == "nothing" else unknown), [unknown]
    aof = found.get("appendonly") == "yes"
    synced = aof and found.get("appendfsync") == "always"
    if not aof:
        loss = "appendonly is off: a crash of Redis loses messages that were answered 250"
    elif not synced:
        loss = f"appendfsync is {found.get('appendfsync')}: a crash may lose the last messages"
    else:
        loss = ""
    warnings = [loss] if loss else []
    policy = found.get("maxmemory-policy", "")
    if found.get("maxmemory", "0") != "0" and policy.startswith("allkeys"):
        warnings.append(f"maxmemory-policy is {policy}: Redis may remove the stream")
    enough = {"nothing": True, "aof": aof, "fsync": synced}[require]
    return ("" if enough else f"{loss} (require is {require})"), warnings


def _address(url: str) -> str:
    """Return the address in a URL, without user name and password.

    :raises SettingError: it is not a valid URL of Redis
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    options = parse_qs(parts.query, keep_blank_values=True)
    unix = parts.scheme == "unix" and parts.path
    tcp = parts.scheme in {"redis", "rediss"} and parts.hostname
    database = parts.path.strip("/") if tcp else "".join(options.pop("db", []))
    if not (unix or tcp) or options or not f"{database or 0}".isdigit() or not url.isprintable():
        form = "write redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix:///PATH?db=DB"
        raise SettingError("url", HIDDEN, form)
    return parts.path if unix else f"{parts.hostname}:{port or 6379}"
