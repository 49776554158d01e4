"""Real programs that tests run against. One that is absent skips its test; in CI it fails it."""

from __future__ import annotations

import os
import shutil
import socket
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
