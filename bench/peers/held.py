"""A handler that measures how long callbacks block the event loop; it accepts every message.

A task sleeps for one millisecond, again and again. A longer sleep was delayed by a callback, by a
thread that kept the interpreter lock, or by another process on the same processor. The CPU time of
the loop's thread during the sleep shows whether a callback was the cause.
"""

from __future__ import annotations

import asyncio
import mmap
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aiosmtpd.smtp import MISSING

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Held", "Holds"]

SLEEP_SECONDS = 0.001

_HOLDS = struct.Struct("dd")


class Holds(NamedTuple):
    """The longest delays since the file was written, seconds.

    :ivar wall: delay of a sleep beyond its duration
    :ivar cpu: CPU time of the loop's thread during one sleep
    """

    wall: float = 0.0
    cpu: float = 0.0

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the content of a file."""
        return cls(*_HOLDS.unpack(path.read_bytes()))

    def write(self, path: Path) -> None:
        """Reset the values in place, because the handler has the file mapped."""
        with path.open("r+b" if path.exists() else "wb") as file:
            file.write(_HOLDS.pack(*self))


class Held:
    """The handler.

    :param path: of a file from ``Holds().write()``; writing to its mapped memory does not block
    """

    def __init__(self, path: str) -> None:
        with Path(path).open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _HOLDS.size)
        self._task: asyncio.Task[None] | None = None

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: Any, _session: Any, _envelope: Any, _address: str, _options: list[str]
    ) -> Any:
        """Start to measure at the first recipient."""
        if self._task is None:
            self._task = asyncio.create_task(self._measure())
        return MISSING

    async def _measure(self) -> None:
        while True:
            wall, cpu = time.monotonic(), time.thread_time()
            await asyncio.sleep(SLEEP_SECONDS)
            now = Holds(time.monotonic() - wall - SLEEP_SECONDS, time.thread_time() - cpu)
            before = Holds(*_HOLDS.unpack_from(self._memory))
            _HOLDS.pack_into(self._memory, 0, *map(max, now, before))
