"""A server for one test: a program in its own directory, which a test can kill and restart."""

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
    """A context manager that runs the program.

    :ivar directory: of its files, which include ``log``
    """

    process: subprocess.Popen[bytes]

    def __init__(self, program: str) -> None:
        self._program = peer(program)  # First: a test must skip before anything is created.
        # Not in tmp_path, whose path may be too long for a unix socket.
        self.directory = Path(tempfile.mkdtemp(prefix=f"{Path(program).name}-"))

    @abstractmethod
    def _arguments(self) -> list[str]:
        """Return the arguments of the program."""

    @abstractmethod
    def _answers(self) -> bool:
        """Return whether the server accepts requests."""

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
