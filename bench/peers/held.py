"""A handler that measures how long the event loop is held, and refuses nobody.

A task sleeps for a millisecond, again and again. A sleep that takes longer was held up by a
callback, by a thread that kept the interpreter's lock, or by another process that had the
processor: the processor time of the loop's thread meanwhile tells the first from the others.
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
    """The longest holds since the file was written, seconds.

    :ivar wall: how long a sleep took beyond its time
    :ivar cpu: processor time of the loop's thread during one sleep
    """

    wall: float = 0.0
    cpu: float = 0.0

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return what a file has."""
        return cls(*_HOLDS.unpack(path.read_bytes()))

    def write(self, path: Path) -> None:
        """Begin anew: in place, as the handler has the file mapped."""
        with path.open("r+b" if path.exists() else "wb") as file:
            file.write(_HOLDS.pack(*self))


class Held:
    """The handler.

    :param path: of a file that ``Holds().write()`` has made; writing to its memory takes no time
    """

    def __init__(self, path: str) -> None:
        with Path(path).open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _HOLDS.size)
        self._task: asyncio.Task[None] | None = None

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: Any, _session: Any, _envelope: Any, _address: str, _options: list[str]
    ) -> Any:
        """Begin with the first recipient."""
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
