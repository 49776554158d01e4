"""RedisLink: connects to Redis or Valkey by TCP, TLS, a unix socket or Sentinel.

The script ``sync.lua`` processes a message, so each message is one atomic step. It is called by its
hash: nodes of two versions, each with its own script, can share one Redis.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from contextlib import suppress
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.asyncio import Redis, Sentinel
from redis.exceptions import NoPermissionError, NoScriptError, ResponseError

from smtpd_fork.fleet.sync import FleetError
from smtpd_fork.redis_connections import ERRORS, connect, options, reason_of

if TYPE_CHECKING:
    from redis.asyncio.client import PubSub
    from redis.asyncio.connection import AbstractConnection

    from smtpd_fork.fleet.address import FleetAddress
    from smtpd_fork.fleet.sync import Keys

__all__ = ["SCRIPT", "RedisLink"]

SCRIPT = files("smtpd_fork.fleet").joinpath("sync.lua").read_text()
"""Read at import: a daemon that has dropped its privileges may not be able to read files."""

QUESTIONS = {
    name: files("smtpd_fork.fleet").joinpath(f"{name}.lua").read_text()
    for name in ("view", "denials", "auth_attempts")
}
"""The scripts of :meth:`RedisLink.ask`."""

CHECK = files("smtpd_fork.fleet").joinpath("check.lua").read_text()

COMMANDS = sorted(
    {name for text in (SCRIPT, *QUESTIONS.values()) for name in re.findall(r"call\('(\w+)'", text)}
)
"""The Redis commands that the scripts use."""

REFUSED_IN_SCRIPT = ("can't run this command", "ACL failure in script")
"""Texts in the errors of Redis 7.0 and of Valkey when the ACL refuses a command of a script."""

CONNECTIONS = 4
"""One for messages, one for hints, one for questions of an administrator, one in reserve."""

CONNECT_SECONDS = 5.0

ASK_SECONDS = 2.0
"""Timeout of :meth:`RedisLink.ask`."""


class RedisServer(NamedTuple):
    """Properties of a Redis server.

    :ivar version: empty if the user may not read it
    :ivar policy: ``maxmemory-policy``; empty if the user may not read it
    :ivar refused: the necessary commands that the ACL refuses
    """

    version: str
    policy: str
    refused: list[str]


class RedisLink:
    """A link to the fleet by Redis; see :class:`smtpd_fork.fleet.link.Link`.

    :param address: of Redis
    :param keys: of the fleet
    :param password: for Redis; None: without a password
    :param ca_file: CA certificates to verify the certificate of Redis; None: the system's
    """

    def __init__(
        self,
        address: FleetAddress,
        keys: Keys,
        *,
        password: str | None = None,
        ca_file: str | None = None,
    ) -> None:
        self._address = address
        self._keys = keys
        self.description = str(address)
        # The fleet has a timeout for each answer; another timer in redis-py would only cost time.
        self._options: dict[str, Any] = {
            "socket_connect_timeout": CONNECT_SECONDS,
            "socket_timeout": None,
        }
        if address.user is not None:
            self._options["username"] = address.user
        if password is not None:
            self._options["password"] = password
        if ca_file is not None and address.tls:
            self._options["ssl_ca_certs"] = ca_file
        self._client: Redis | None = None
        self._connection: AbstractConnection | None = None
        self._sentinels: list[Redis] = []
        self._hints: PubSub | None = None
        self._hash = ""

    async def open(self) -> None:
        """Connect, load the script, and subscribe to hints; see :class:`Link`."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                self._client = self._connect()
                pool = self._client.connection_pool
                self._connection = pool.make_connection()  # type: ignore[no-untyped-call]  # as above
                await self._connection.connect()  # now: it asks Sentinel, if there is one
                self._hash = await self._client.script_load(SCRIPT)
                await self._subscribe()
        except TimeoutError:
            raise FleetError(f"no answer within {CONNECT_SECONDS:g} s") from None
        except ERRORS as error:
            raise FleetError(_reason(error)) from None

    async def _subscribe(self) -> PubSub:
        assert self._client is not None
        self._hints = self._client.pubsub(ignore_subscribe_messages=True)
        await self._hints.subscribe(self._keys.channel)
        await self._hints.get_message(timeout=None)  # the confirmation, or an error
        return self._hints

    def _connect(self) -> Redis:
        address = self._address
        if not address.sentinels:
            return connect(address.url, CONNECTIONS, self._options)
        sentinel = Sentinel(  # type: ignore[no-untyped-call]  # redis-py has no types for it
            address.sentinels, **options(socket_connect_timeout=CONNECT_SECONDS)
        )
        self._sentinels = sentinel.sentinels
        primary: Redis = sentinel.master_for(address.name, **options(**self._options))
        return primary

    async def call(self, keys: list[str], message: bytes) -> object:
        """Send a message, and return its answer; see :class:`Link`."""
        names = [*self._keys.fixed, *map(self._keys.of, keys)]
        try:
            try:
                return await self._evaluate(names, message)
            except NoScriptError:  # no script has run, so the message can be sent again
                assert self._client is not None
                self._hash = await self._client.script_load(SCRIPT)
                return await self._evaluate(names, message)
        except ERRORS as error:
            raise FleetError(_reason(error)) from None

    async def _evaluate(self, names: list[str], message: bytes) -> object:
        # A connection without redis-py's client, which takes 100 us more for each message.
        connection = self._connection
        assert connection is not None
        words = ("EVALSHA", self._hash, str(len(names)), *names)
        command = _command(*map(str.encode, words), message, self._keys.channel.encode())
        await connection.send_packed_command(command, check_health=False)
        return await connection.read_response()

    async def ask(self, question: str, keys: list[str], message: bytes) -> object:
        """Send a question on another connection; see :class:`Link`."""
        client, script = self._client, QUESTIONS[question]
        if client is None:
            raise FleetError("there is no connection")
        names = [*self._keys.fixed, *map(self._keys.of, keys)]
        arguments: list[Any] = [len(names), *names, message, self._keys.channel]
        name = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        try:
            async with asyncio.timeout(ASK_SECONDS):
                try:
                    return await client.evalsha(name, *arguments)
                except NoScriptError:
                    return await client.evalsha(await client.script_load(script), *arguments)
        except TimeoutError:
            raise FleetError(f"no answer within {ASK_SECONDS:g} s") from None
        except ERRORS as error:
            raise FleetError(_reason(error)) from None

    async def server(self) -> RedisServer:
        """Return the version, the eviction policy and the refused commands of the server.

        :raises FleetError: the server does not answer
        """
        client = self._client
        assert client is not None
        version = policy = ""
        with suppress(ResponseError):
            version = str((await client.info("server"))["redis_version"])
        with suppress(ResponseError, KeyError):
            policy = str((await client.config_get("maxmemory-policy"))["maxmemory-policy"])
        arguments: list[Any] = [self._keys.fixed[1], self._keys.channel, *COMMANDS]
        try:
            name = await client.script_load(CHECK)
            refused = await client.evalsha(name, 1, *arguments)
        except ERRORS as error:
            raise FleetError(_reason(error)) from None
        return RedisServer(version, policy, [str(each, "ascii") for each in refused])

    async def hint(self) -> str:
        """Return the next hint; see :class:`Link`."""
        try:
            hints = self._hints or await self._subscribe()
            while True:
                found = await hints.get_message(timeout=None)
                if found is not None:
                    return str(found["data"], "ascii", "replace")
        except ERRORS as error:
            hints_lost, self._hints = self._hints, None
            await _close(hints_lost)
            raise FleetError(_reason(error)) from None

    async def close(self) -> None:
        """Close the connections; see :class:`Link`."""
        ends = (self._hints, self._client, *self._sentinels)
        connection, self._connection = self._connection, None
        self._client, self._hints, self._sentinels = None, None, []
        if connection is not None:
            with suppress(*ERRORS):
                await connection.disconnect()
        for each in ends:
            await _close(each)


def _command(*words: bytes) -> bytes:
    """Encode a command in the protocol of Redis (RESP)."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)


async def _close(each: Redis | PubSub | None) -> None:
    if each is not None:
        with suppress(*ERRORS):  # the connection may be lost already
            await each.aclose()


def _command_in(text: str) -> str:
    """Return the command in the line of the script that an error names; empty if unknown."""
    line = re.search(r"@user_script:(\d+)", text)
    lines = SCRIPT.splitlines()[int(line[1]) - 1 : int(line[1])] if line else []
    command = re.search(r"redis\.call\('(\w+)'", lines[0]) if lines else None
    return command[1] if command else ""


def _reason(error: BaseException) -> str:
    """Return a text for an administrator: why Redis cannot be used."""
    text = reason_of(error)
    if isinstance(error, NoPermissionError):
        return f"the ACL of Redis refuses: {text}"
    if any(each in text for each in REFUSED_IN_SCRIPT) and (command := _command_in(text)):
        return f"the ACL of Redis refuses the command {command}: {text}"
    if isinstance(error, ResponseError) and "WRONGTYPE" in text:
        return f"a key of the fleet has another type: another program uses it: {text}"
    return text
