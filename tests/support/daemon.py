"""The daemon as a process: started with options, stopped with a signal to its pid."""

from __future__ import annotations

import os
import queue
import re
import smtplib
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import TYPE_CHECKING, Any, Self

import pytest

from support.peers import needs_ipv6_for, proc
from support.zygote import zygote

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

on_both_loops = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
"""Runs a test of a daemon with each --loop."""

PATIENCE = 20.0
"""Seconds for the daemon to start, to stop, or to log a line."""

COMMAND = [sys.executable, "-m", "smtpd_fork"]

CONSOLE_SCRIPT = Path(sys.executable).with_name("smtpd-fork")

LOCAL = ("-l", "127.0.0.1:0", "--handler", "discard")
"""Options for one address, a free port, and no files."""

_LISTENING = re.compile(r"listening on (\S+)(?: \(IPv6 and IPv4\))?$")
_SERVING = re.compile(r"serving, pid (\d+)$")


def clean_environment(**more: str) -> dict[str, str]:
    """Return the environment without the daemon's options of the process that runs the tests."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SMTPD_FORK_")}
    return {**kept, **more}


def run(
    *options: str,
    cwd: Path,
    environment: dict[str, str] | None = None,
    command: list[str] | None = None,
    user: str | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.CompletedProcess[str]:
    """Run the command until it ends: for starts that fail, and for --detach."""
    if _needs_no_exec(options, environment or {}, command, user, pass_fds):
        surroundings = clean_environment(**(environment or {}))
        words = [*(command or COMMAND)[len(COMMAND) :], *options]
        return zygote().run(words, cwd=cwd, environment=surroundings, timeout=PATIENCE)
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
        pass_fds=pass_fds,
    )


def _needs_no_exec(
    options: Sequence[str],
    environment: dict[str, str],
    command: list[str] | None,
    user: str | None,
    pass_fds: Sequence[int],
) -> bool:
    """Return whether the zygote can run a command: no process stays, and exec(2) is not needed."""
    words = [*(command or COMMAND), *options]
    of_interpreter = any(not name.startswith("SMTPD_FORK_") for name in environment)
    return (
        words[: len(COMMAND)] == COMMAND
        and words[len(COMMAND) : len(COMMAND) + 1] in (["check"], ["config"])
        and not (of_interpreter or user or pass_fds)
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
        pass_fds: Sequence[int] = (),
    ) -> None:
        needs_ipv6_for(options)
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
            pass_fds=pass_fds,
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
        """Return the match of *pattern* in a line of the log, waiting for the line if necessary."""
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
        """All lines logged so far, as one text."""
        while not self._news.empty():
            line = self._news.get_nowait()
            if line is not None:
                self.lines.append(line)
        return "\n".join(self.lines)

    @property
    def places(self) -> list[str]:
        """The address that it listens on, from its log."""
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
        """Send it a signal, wait for its end, return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end(self.process)
        self._reader.join(PATIENCE)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


def end(process: subprocess.Popen[Any]) -> None:
    """End a process that a test started, if it still runs: with a signal, then by killing it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Detached:
    """A detached daemon; a context manager that ends it.

    :ivar pid: of the daemon, from its log
    """

    def __init__(
        self,
        *options: str,
        cwd: Path,
        command: list[str] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.log = cwd / "smtpd.log"
        self.ended = run(
            *("--detach", "--log-to", self.log.name, *options),
            cwd=cwd,
            command=command,
            environment=environment,
        )
        self.pid = self._served() if self.ended.returncode == 0 else 0

    def _served(self) -> int:
        """Return the pid from the log, which a thread writes with a short delay."""
        deadline = time.monotonic() + PATIENCE
        while not (served := re.search(r"serving, pid (\d+)$", self.text, re.MULTILINE)):
            assert time.monotonic() < deadline, self.text
            time.sleep(0.01)
        return int(served[1])

    @property
    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    @property
    def port(self) -> int:
        found = re.search(r"listening on \S+:(\d+)(?: \(.*\))?$", self.text, re.MULTILINE)
        assert found, self.text
        return int(found[1])

    def smtp(self) -> smtplib.SMTP:
        return smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE)

    def stop(self, number: Signals = SIGTERM) -> None:
        os.kill(self.pid, number)
        wait_until_gone(self.pid)

    def __enter__(self) -> Self:
        assert (self.ended.returncode, self.ended.stdout) == (0, ""), self.ended.stderr
        assert self.pid, self.text
        return self

    def __exit__(self, *_: object) -> None:
        if self.pid and is_alive(self.pid):
            os.kill(self.pid, SIGKILL)
            wait_until_gone(self.pid)


class Process:
    """Fields of a process in /proc (proc(5))."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        fields = proc(pid, "stat").read_text().rpartition(")")[2].split()
        self.parent, self.group, self.session, self.terminal = map(int, fields[1:5])
        self.folder = os.readlink(proc(pid, "cwd"))
        lines = proc(pid, "status").read_text().splitlines()
        self.status = {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}

    def descriptor(self, number: int) -> str:
        return os.readlink(proc(self.pid, "fd", number))


def is_alive(pid: int) -> bool:
    """Return whether *pid* runs; a zombie does not."""
    try:
        if Path("/proc/self").exists():
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        with suppress(ChildProcessError):
            return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        os.kill(pid, 0)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return True


def until(happened: Callable[[], object], what: str) -> None:
    """Poll until a condition is true that another process changes without any event."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, f"timeout: {what}"
        time.sleep(0.005)


def wait_until_gone(pid: int) -> None:
    """Wait for the end of a process that is not a child of this one."""
    deadline = time.monotonic() + PATIENCE
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} does not end"
        time.sleep(0.01)


def messages(maildir: Path) -> list[str]:
    """Return the messages in a Maildir, sorted by name."""
    return [path.read_text() for path in sorted((maildir / "new").iterdir())]
