"""A server of the test's own: a program in a directory of its own, killed and started at will."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from support.daemon import PATIENCE, end
from support.peers import peer

__all__ = ["PeerServer"]


class PeerServer(ABC):
    """A context manager: the program runs in it.

    :ivar directory: of its files; it has the file ``log``
    """

    process: subprocess.Popen[bytes]

    def __init__(self, program: str) -> None:
        self._program = peer(program)  # now: a test that skips later leaves what it has begun
        # Not in tmp_path, which may be longer than the path of a socket.
        self.directory = Path(tempfile.mkdtemp(prefix=f"{Path(program).name}-"))

    @abstractmethod
    def _arguments(self) -> list[str]:
        """Return the arguments of the program."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether it can be used."""

    def start(self) -> None:
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self._program, *self._arguments()],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            if self._answers():
                return
            time.sleep(0.01)
        raise AssertionError((self.directory / "log").read_text())

    def stop(self) -> None:
        end(self.process)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.directory)
