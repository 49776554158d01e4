"""A supervisor in the middle of an upgrade."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from support.control import CONTROL, ask
from support.daemon import Daemon, Process, is_alive, until, wait_until_gone
from support.peers import proc
from support.supervised import children

if TYPE_CHECKING:
    import smtplib
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["FAILED", "Halfway", "upgrading"]

FAILED = "ERROR upgrade failed, this process continues: "

STEPWISE = """
import os, pathlib, time

log = os.open("started", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
os.write(log, b"-\\n")
number = os.fstat(log).st_size // 2
while pathlib.Path(f"wait-{number}").exists():
    time.sleep(0.01)
if pathlib.Path(f"broken-{number}").exists():
    raise ValueError("no moon tonight")


class Handler:
    async def handle_NOOP(self, server, session, envelope, argument):
        return f"250 {os.getpid()}"

    async def handle_DATA(self, server, session, envelope):
        return "250 taken"
"""
"""A handler whose Nth import can be made slow or made to fail. The supervisor imports none."""

OPTIONS = ("-l", "127.0.0.1:0", "--handler", "stepwise:Handler", "--processes", "2", "-c", "4")


def pid_of(client: smtplib.SMTP) -> int:
    """Return the process that serves a session."""
    code, text = client.noop()
    assert code == 250
    return int(text)


class Halfway:
    """A daemon with two processes in an upgrade, while the second new process starts.

    :ivar old: the old supervisor
    :ivar new: the new supervisor
    :ivar processes: the first old one, which no longer accepts, the second, which accepts, and the
        new one
    :ivar sessions: one in each of them
    """

    def __init__(self, folder: Path, daemon: Daemon) -> None:
        self.folder = folder
        self.daemon = daemon
        self.old = daemon.process.pid
        first, second = children(daemon)
        self.sessions = [self.session_in(first)]
        (folder / "wait-4").touch()
        daemon.signal(signal.SIGUSR2)
        daemon.wait_for("upgrade: 1 of 2 new processes serve, and 1 of 2 old ones")
        until(lambda: (folder / "started").stat().st_size == 2 * 4, "the second one starts")
        self.processes = children(daemon, 3)
        self.new = Process(self.processes[2]).parent
        self.sessions += [self.session_in(pid) for pid in (second, self.processes[2])]

    def session_in(self, pid: int) -> smtplib.SMTP:
        """Return a session in a process that accepts; each process accepts two."""
        others = []
        while pid_of(client := self.daemon.smtp()) != pid:
            others.append(client)
        for other in others:
            other.close()
        return client

    def go_on(self) -> None:
        """Let the second new process start."""
        (self.folder / "wait-4").unlink()

    def fail(self) -> None:
        """Let the start of the second new process fail."""
        (self.folder / "broken-4").touch()
        self.go_on()

    def check_sessions(self, *numbers: int) -> None:
        """Check that sessions continue in their processes, and accept mail."""
        for number in numbers or range(3):
            client = self.sessions[number]
            assert pid_of(client) == self.processes[number]
            client.sendmail("a@example.com", ["b@example.com"], "Subject: hi\r\n\r\nhello\r\n")

    def check_that_old_ones_accept(self, *pids: int) -> None:
        """Check that new sessions are in these processes, and in no others."""
        until(lambda: self._states() == dict.fromkeys(pids, "serving"), "only they serve")
        for pid in pids:
            self.session_in(pid).close()

    def _states(self) -> dict[int, str]:
        listed = ask(self.folder, "status")["processes"]
        return {each["pid"]: each["state"] for each in listed if each["state"] == "serving"}

    def end_sessions(self) -> None:
        for client in self.sessions:
            with suppress(OSError):
                client.close()


@contextmanager
def upgrading(
    folder: Path,
    *options: str,
    environment: dict[str, str] | None = None,
    command: list[str] | None = None,
) -> Iterator[Halfway]:
    proc()  # First: a test must skip before anything is started.
    (folder / "stepwise.py").write_text(STEPWISE)
    options = (*OPTIONS, *CONTROL, "--pid-file", "pid", *options)
    with Daemon(*options, cwd=folder, environment=environment, command=command) as daemon:
        halfway = Halfway(folder, daemon)
        try:
            yield halfway
        finally:
            (folder / "wait-4").unlink(missing_ok=True)
            halfway.end_sessions()
            for pid in (halfway.new, *children(daemon)):
                if is_alive(pid):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
                    wait_until_gone(pid)
