"""Connections to Redis, with a limit of the answer's size and errors that contain no password.

redis-py has no such limit: it keeps an answer of any size in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis._parsers.resp2 import _AsyncRESP2Parser  # there is no public parser
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import InvalidResponse, RedisError

from smtpd_fork.sanitizer import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ERRORS", "connect", "options", "reason_of"]

LONGEST_ANSWER = 1 << 16
"""Bytes; the expected answers have less than a hundred."""

ERRORS = (RedisError, OSError, ValueError, RecursionError, EOFError)
"""The errors of redis-py if the server is unreachable, refuses a command or sends invalid data."""


class BoundedParser(_AsyncRESP2Parser):
    """Reads answers of at most :data:`LONGEST_ANSWER` bytes."""

    async def read_response(self, disable_decoding: bool = False) -> Any:
        """Read an answer.

        :raises InvalidResponse: the answer is too long
        """
        self._left = LONGEST_ANSWER
        return await super().read_response(disable_decoding)

    async def _read(self, length: int) -> bytes:
        self._spend(length)
        return await super()._read(length)

    async def _readline(self) -> bytes:
        line = await super()._readline()
        self._spend(len(line) + 2)
        return line

    def _spend(self, length: int) -> None:
        self._left -= length
        if length < 0 or self._left < 0:
            raise InvalidResponse("the answer is too long")


def options(**more: Any) -> dict[str, Any]:
    """Return the options that all connections have, and *more*."""
    return {
        "parser_class": BoundedParser,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),  # only callers know which commands can be repeated
        "driver_info": None,  # older servers do not know the command CLIENT SETINFO
        **more,
    }


def connect(url: str, connections: int, more: Mapping[str, Any]) -> Redis:
    """Return a client, which connects when it is first used.

    :param url: ``redis://``, ``rediss://`` or ``unix://``
    :param more: options of redis-py's connections
    :raises ValueError: *url* cannot be read
    """
    pool = BlockingConnectionPool.from_url(url, max_connections=connections, **options(**more))
    client: Redis = Redis.from_pool(pool)  # closes the pool with it
    return client


def reason_of(error: BaseException) -> str:
    """Return the text of an error."""
    return printable(f"{type(error).__name__}: {error}".strip(" :").replace("\n", " "))
