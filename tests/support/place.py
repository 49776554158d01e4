"""Starts that fail: the files and addresses they need, their errors, and what they leave behind."""

from __future__ import annotations

import os
import socket
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from support.daemon import COMMAND, PATIENCE, is_alive, run
from support.peers import proc
from support.ports import free_port

if TYPE_CHECKING:
    import subprocess

    from support.tls import Certificates

MARK = "MARK_OF_A_TEST"
"""A variable by which a test finds the processes that it has started."""

BROKEN = """
import sys


class Raises:
    def __init__(self):
        raise ValueError("no moon\\ntonight")


class Exits:
    def __init__(self):
        sys.exit(0)
"""


class Place:
    """A directory, an address and more for invalid settings; checks what a start leaves."""

    def __init__(self, folder: Path, certificates: Certificates, taken: int) -> None:
        self.folder = folder
        self.pid_file = folder / "daemon.pid"
        self.socket = folder / "smtp.sock"
        self.mark = uuid.uuid4().hex
        self.port = free_port("127.0.0.1")
        (folder / "broken.py").write_text(BROKEN)
        (folder / "file").write_text("a file")
        (folder / "link").symlink_to(folder / "file")
        other, encrypted = folder / "other.pem", folder / "encrypted.pem"
        trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(str(other))
        encrypted.write_bytes(
            load_pem_private_key(certificates.key.read_bytes(), None).private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
            )
        )
        self.fields = {
            "cert": certificates.cert,
            "encrypted": encrypted,
            "folder": folder,
            "key": certificates.key,
            "long": "x" * 120,
            "other": other,
            "port": self.port,
            "taken": taken,
        }

    @property
    def good(self) -> tuple[str, ...]:
        """Valid options, each of which could leave something behind."""
        return (
            *("-l", f"127.0.0.1:{self.port}", "-l", f"unix:{self.socket}"),
            *("--pid-file", str(self.pid_file)),
        )

    def fill(self, texts: tuple[str, ...]) -> list[str]:
        return [text.format_map(self.fields) for text in texts]

    def start(
        self,
        *options: str,
        environment: dict[str, str] | None = None,
        command: list[str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        handler = (
            () if "--handler" in options or "--config" in options else ("--handler", "discard")
        )
        return run(
            *(*self.good, *handler, *options),
            cwd=self.folder,
            environment={**(environment or {}), MARK: self.mark},
            command=command,
        )

    def check(
        self,
        *options: str,
        environment: dict[str, str] | None = None,
        command: list[str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``check`` with the arguments of :meth:`start`."""
        command = [*(command or COMMAND), "check"]
        return self.start(*options, environment=environment, command=command)

    def assert_nothing_left(self) -> None:
        assert not self.pid_file.exists()
        assert not self.socket.exists()
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", self.port))
        assert_no_process(self.mark)


def assert_no_process(mark: str) -> None:
    """Check that every process whose environment has *mark* has ended, or is ending."""
    needle = f"{MARK}={mark}".encode()
    deadline = time.monotonic() + PATIENCE
    while left := [pid for pid in processes() if needle in environment_of(pid)]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.01)


def processes() -> list[int]:
    return [int(name) for name in os.listdir(proc()) if name.isdigit() and is_alive(int(name))]


def environment_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def only_line(ended: subprocess.CompletedProcess[str]) -> str:
    """Return the only line of output."""
    assert ended.stdout == ""
    assert ended.stderr.startswith("smtpd-fork: "), ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.endswith("\n")
    return ended.stderr
