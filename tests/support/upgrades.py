"""Upgrades: the new processes of a daemon, and a load during an upgrade."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from typing import Self

from support.daemon import (
    Daemon,
    is_alive,
    until,
    wait_until_gone,
)
from support.peers import peer

TAKEN = r"process (\d+) has inherited the sockets"


class Successors:
    """New processes of successive upgrades; a context manager that ends them.

    :ivar pids: theirs, in order
    """

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.pids: list[int] = []

    def upgrade(self) -> int:
        """Upgrade the last process; return the pid of the new one."""
        last = self.pids[-1] if self.pids else self.daemon.process.pid
        os.kill(last, signal.SIGUSR2)
        count = len(self.pids) + 1
        until(lambda: len(re.findall(TAKEN, self.daemon.log)) == count, "it takes over")
        pid = int(re.findall(TAKEN, self.daemon.log)[-1])
        self.pids.append(pid)
        self.daemon.wait_for(f"serving, pid {pid}$")
        return pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.pids:
            if is_alive(pid):
                os.kill(pid, signal.SIGTERM)
        for pid in self.pids:
            wait_until_gone(pid)


class Load:
    """smtp-source, in a loop until it is stopped; a context manager.

    :ivar sent: number of messages that it was asked to send
    :ivar faults: its error messages
    """

    ROUND = 300

    def __init__(self, port: int) -> None:
        self._command = [peer("smtp-source"), "-s", "8", "-m", str(self.ROUND), "-l", "2000"]
        self._command.append(f"inet:127.0.0.1:{port}")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sent = 0
        self.faults: list[str] = []

    def _run(self) -> None:
        while not self._over.is_set():
            ended = subprocess.run(self._command, capture_output=True, text=True, check=False)
            self.sent += self.ROUND
            if ended.returncode or ended.stdout or ended.stderr:
                self.faults.append(f"{ended.returncode} {ended.stdout}{ended.stderr}")

    def finish(self) -> None:
        self._over.set()
        self._thread.join()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()
