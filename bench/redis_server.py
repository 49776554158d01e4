"""A redis-server for one measurement."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

__all__ = ["RedisServer"]

START_SECONDS = 10


class RedisServer:
    """A context manager that runs the server.

    :ivar path: of its unix socket
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="redis-"))
        self.path = self._folder / "sock"

    @staticmethod
    def missing() -> str:
        """Return why redis-server cannot be used; empty if it can."""
        return "" if shutil.which("redis-server") else "redis-server is not installed"

    def __enter__(self) -> Self:
        command = ["redis-server", "--port", "0", "--unixsocket", str(self.path), "--save", ""]
        self._process = subprocess.Popen(  # noqa: S603 - no argument comes from outside
            [*command, "--dir", str(self._folder)], stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_SECONDS
        while not self.path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._folder)
