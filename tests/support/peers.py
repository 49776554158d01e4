"""Real programs that tests run against. One that is absent skips its test; in CI it fails it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

IN_CI = os.environ.get("CI") == "true"

_ELSEWHERE = ("/usr/sbin", "/sbin", "/usr/lib/postfix/sbin")


def peer(program: str) -> str:
    """Return the path of *program*; without it the test cannot say anything."""
    path = shutil.which(program, path=os.pathsep.join([os.environ["PATH"], *_ELSEWHERE]))
    if path is None:
        cannot(f"{program} is not installed")
    return str(path)


UNPACKED = Path("/opt/peers")
"""Where .ci/run unpacks packages that cannot be installed beside each other, as all MTAs."""


def unpacked(path: str, *, package: str) -> Path:
    """Return a program of a Debian package that was unpacked, not installed."""
    program = UNPACKED / path
    if not program.exists():
        cannot(f"{package} is not unpacked in {UNPACKED} (as .ci/run does it)")
    return program


def npm_package(name: str, version: str) -> Path:
    """Return the directory of a package of npm; it is installed into a cache."""
    peer("node")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smtpd-fork-tests"
    package = cache / f"{name}-{version}" / "node_modules" / name
    if not (package / "package.json").is_file():
        quiet = ("--no-audit", "--no-fund", "--no-save", "--ignore-scripts", "--loglevel=error")
        folder = package.parents[1]
        folder.mkdir(parents=True, exist_ok=True)
        command = [peer("npm"), "install", "--prefix", str(folder), *quiet, f"{name}@{version}"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        if ended.returncode:
            cannot(f"npm cannot install {name} {version}: {ended.stderr[-500:]}")
    return package


def cannot(reason: str) -> None:
    """Skip the test for *reason*; in CI, where everything is there, fail it."""
    if IN_CI:
        pytest.fail(f"CI has to have it: {reason}")
    pytest.skip(reason)


def needs_root() -> None:
    if os.geteuid() != 0:
        cannot("it takes root")


def needs_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        cannot("there is no IPv6 on loopback")


SYSTEM_PYTHON = Path("/usr/bin/python3")
