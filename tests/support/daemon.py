"""The daemon as a process: started with options, stopped by its pid."""

from __future__ import annotations

import os
import queue
import re
import smtplib
import subprocess
import sys
import threading
import time
from pathlib import Path
from signal import SIGTERM, Signals
from typing import Self

PATIENCE = 20.0
"""Seconds for the daemon to start, to stop, or to say something."""

COMMAND = [sys.executable, "-m", "smtpd_fork"]

_LISTENING = re.compile(r"listening on (\S+)$")
_SERVING = re.compile(r"serving, pid (\d+)$")


def clean_environment(**more: str) -> dict[str, str]:
    """Return the environment without the options of whoever runs the tests."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SMTPD_FORK_")}
    return {**kept, **more}


def run(
    *options: str,
    cwd: Path,
    environment: dict[str, str] | None = None,
    command: list[str] | None = None,
    user: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end: for starts that fail, and for --detach."""
    return subprocess.run(
        [*(command or COMMAND), *options],
        cwd=cwd,
        env=clean_environment(**(environment or {})),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        user=user,
        extra_groups=[] if user else None,
    )


class Daemon:
    """A daemon in the foreground; a context manager that stops it.

    :ivar lines: what it has logged so far
    """

    def __init__(
        self,
        *options: str,
        cwd: Path,
        environment: dict[str, str] | None = None,
        command: list[str] | None = None,
    ) -> None:
        self.lines: list[str] = []
        self._news: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            [*(command or COMMAND), *options],
            cwd=cwd,
            env=clean_environment(**(environment or {})),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.wait_for(_SERVING)
        except BaseException:
            self.__exit__()
            raise

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._news.put(line.rstrip("\n"))
        self._news.put(None)

    def wait_for(
        self, pattern: str | re.Pattern[str], *, patience: float = PATIENCE
    ) -> re.Match[str]:
        """Return the match of *pattern* in a line logged so far, or the next that has it."""
        for line in self.lines:
            if match := re.search(pattern, line):
                return match
        deadline = time.monotonic() + patience
        while (left := deadline - time.monotonic()) > 0:
            try:
                line_or_end = self._news.get(timeout=left)
            except queue.Empty:
                break
            if line_or_end is None:
                break
            self.lines.append(line_or_end)
            if match := re.search(pattern, line_or_end):
                return match
        raise AssertionError(f"the daemon did not log {pattern!r}; it logged:\n{self.log}")

    @property
    def log(self) -> str:
        """All that it has logged so far."""
        while not self._news.empty():
            line = self._news.get_nowait()
            if line is not None:
                self.lines.append(line)
        return "\n".join(self.lines)

    @property
    def places(self) -> list[str]:
        """Where it listens, as it logged it."""
        return [match[1] for line in self.lines if (match := _LISTENING.search(line))]

    @property
    def port(self) -> int:
        """The first port that it listens on."""
        return int(self.places[0].rpartition(":")[2])

    def smtp(self, host: str = "127.0.0.1", source: str = "") -> smtplib.SMTP:
        """Return a client that is connected."""
        address = (source, 0) if source else None
        return smtplib.SMTP(host, self.port, timeout=PATIENCE, source_address=address)

    def deliver(self, body: str = "Subject: hi\r\n\r\nhello\r\n") -> None:
        with self.smtp() as client:
            client.sendmail("a@example.com", ["b@example.com"], body)

    def signal(self, number: Signals) -> None:
        self.process.send_signal(number)

    def stop(self, number: Signals = SIGTERM) -> int:
        """Signal it, wait for its end, return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(PATIENCE)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


def is_alive(pid: int) -> bool:
    """Whether *pid* runs; one that has ended and waits for its parent does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until_gone(pid: int) -> None:
    """Wait for the end of a process that is not our child."""
    deadline = time.monotonic() + PATIENCE
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} does not end"
        time.sleep(0.01)


def messages(maildir: Path) -> list[str]:
    """Return the messages in a Maildir, oldest name first."""
    return [path.read_text() for path in sorted((maildir / "new").iterdir())]
