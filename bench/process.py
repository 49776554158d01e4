"""Processes that a run starts. The end of a block ends its process by pid, also after an error."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL
from typing import TYPE_CHECKING, Any, ClassVar, Self

from bench.proc import family

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ROOT", "BenchError", "Client", "Process", "run"]

ROOT = Path(__file__).parents[1]
"""The tree that is measured, with ``bench`` and ``smtpd_fork``."""

PATIENCE = 15.0
"""Seconds to wait for the end of a process after SIGTERM; then it is killed."""


class BenchError(Exception):
    """A measurement failed; the text is the reason, in one line."""


def _environment() -> dict[str, str]:
    """Return the environment without the daemon's options, and with this tree in PYTHONPATH."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SMTPD_FORK_")}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": path}


class Process:
    """A process in its own session: Ctrl-C reaches only the benchmark, which ends the process.

    :param command: program and arguments
    :param folder: its working directory, which also gets the file with its output
    """

    answers: ClassVar[bool] = False
    """Whether standard input and output are pipes to the benchmark."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self._output = folder / "output"
        with self._output.open("ab") as output:
            self._popen = subprocess.Popen(  # noqa: S603 - the contenders build the command
                command,
                cwd=folder,
                env=_environment(),
                stdin=subprocess.PIPE if self.answers else subprocess.DEVNULL,
                stdout=subprocess.PIPE if self.answers else output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._popen.poll() is None

    @property
    def last_output(self) -> str:
        """The last line of its output."""
        lines = self._output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "it said nothing"

    def wait(self, patience: float) -> int:
        """Return its exit status once it has ended.

        :raises subprocess.TimeoutExpired: it has not ended within *patience* seconds
        """
        if self.alive:
            # Popen.wait() polls every 50 ms, which is a tenth of the measured time.
            ended = os.pidfd_open(self.pid)
            try:
                select.select([ended], [], [], patience)
            finally:
                os.close(ended)
        return self._popen.wait(0)

    def end(self) -> None:
        """End the process and all its descendants."""
        offspring = family(self.pid)[1:] if self.alive else []
        try:
            self._popen.terminate()
            self._popen.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if self.alive:
                self._popen.kill()
                self._popen.wait()
            for pid in offspring:
                with suppress(ProcessLookupError):
                    os.kill(pid, SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


class Client(Process):
    """A client of ``bench.clients``: it answers each line with a line of JSON.

    :param module: its name
    :param options: its keyword arguments
    """

    answers: ClassVar[bool] = True

    def __init__(self, module: str, folder: Path, **options: Any) -> None:
        name = f"bench.clients.{module}"
        super().__init__([sys.executable, "-m", name, json.dumps(options)], folder)

    def send(self, word: str) -> None:
        """Send a line to the client."""
        assert self._popen.stdin is not None  # noqa: S101 - for the type checker
        # The next receive() reports that the client has ended.
        with suppress(BrokenPipeError):
            self._popen.stdin.write(f"{word}\n".encode())
            self._popen.stdin.flush()

    def receive(self, patience: float) -> dict[str, float]:
        """Return the next answer.

        :raises BenchError: the client ended, or gave no answer within *patience* seconds
        """
        assert self._popen.stdout is not None  # noqa: S101 - for the type checker
        deadline = time.monotonic() + patience
        line = b""
        while not line.endswith(b"\n"):
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._popen.stdout], [], [], left)[0]:
                raise BenchError(f"the client gave no answer in {patience:g} s")
            some = os.read(self._popen.stdout.fileno(), 65536)
            if not some:
                raise BenchError(f"the client ended: {self.last_output}")
            line += some
        answer: dict[str, float] = json.loads(line)
        return answer

    def request(self, word: str, patience: float = 120.0) -> dict[str, float]:
        """Send a line and return the answer."""
        self.send(word)
        return self.receive(patience)

    def end(self) -> None:
        """End the client, and close its pipes."""
        super().end()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def run(command: Sequence[str], folder: Path, patience: float) -> None:
    """Run a program until it ends.

    :raises BenchError: it failed, or took longer than *patience* seconds
    """
    with Process(command, folder) as process:
        name = Path(command[0]).name
        try:
            status = process.wait(patience)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{name} took longer than {patience:g} s") from None
        if status:
            raise BenchError(f"{name}: {process.last_output}")
