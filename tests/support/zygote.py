"""Zygote: a process that has imported the program, and forks for each command that tests run.

Imports take half of the time of a command. The zygote does them once for each worker of pytest.
Only commands that end by themselves and do not depend on exec(2) are started this way: see
:func:`support.daemon.run`.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_LENGTH = struct.Struct("!I")

_STATUS = struct.Struct("!i")


class Zygote:
    """The zygote, as used by the tests."""

    def __init__(self) -> None:
        self._sock, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def run(
        self, words: Sequence[str], *, cwd: Path, environment: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a command until it ends."""
        request = json.dumps({"words": words, "cwd": str(cwd), "environment": environment}).encode()
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            files = [output.fileno(), errors.fileno()]
            socket.send_fds(self._sock, [_LENGTH.pack(len(request))], files)
            self._sock.sendall(request)
            self._sock.settimeout(timeout)
            status = _STATUS.unpack(_receive(self._sock, _STATUS.size))[0]
            texts = [os.pread(file, 1 << 24, 0).decode() for file in files]
        return subprocess.CompletedProcess(words, status, *texts)


@cache
def zygote() -> Zygote:
    """Return the zygote of this worker of pytest."""
    return Zygote()


def _receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


# -- the process ---------------------------------------------------------------------------------


def _next_command(sock: socket.socket) -> list[str]:
    """Fork for each request; return, in the child process, the words of its command line."""
    while True:
        length, files, _, _ = socket.recv_fds(sock, _LENGTH.size, 2)
        if not length:
            os._exit(0)
        request: dict[str, Any] = json.loads(_receive(sock, _LENGTH.unpack(length)[0]))
        pid = os.fork()
        if not pid:
            sock.close()
            for target, file in enumerate(files, 1):
                os.dup2(file, target)
                os.close(file)
            os.chdir(request["cwd"])
            os.environ.clear()
            os.environ.update(request["environment"])
            sys.path[0] = ""
            return list(request["words"])
        for file in files:
            os.close(file)
        _, status = os.waitpid(pid, 0)
        sock.sendall(_STATUS.pack(os.waitstatus_to_exitcode(status)))


if __name__ == "__main__":
    import smtpd_fork.cli.command  # noqa: F401 - imported so that each child process has it
    from smtpd_fork.cli import main

    sys.argv = ["smtpd-fork", *_next_command(socket.socket(fileno=int(sys.argv[1])))]
    sys.exit(main())
