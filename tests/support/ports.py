"""Ports that a program under test can bind, whatever other tests and their clients do meanwhile."""

from __future__ import annotations

import itertools
import os
import random
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["free_port", "free_ports"]

WORKERS = 16
"""Number of ranges that the ports are divided into: one for each worker of pytest-xdist."""

_taken: Iterator[int] | None = None


def free_port(host: str = "0.0.0.0") -> int:
    """Return a free port of *host* that no other test gets.

    bind(2) of port 0 does not give such a port: before the program binds it, it could become the
    local port of a connection, or of another test. So it is below the range of those ports.
    """
    global _taken  # noqa: PLW0603 - the ports are per process
    if _taken is None:
        _taken = itertools.cycle(_own_ports())
    for port in _taken:
        with socket.socket() as sock, suppress(OSError):
            sock.bind((host, port))
            return port
    raise AssertionError("a cycle does not end")


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return *count* free ports."""
    return [free_port(host) for _ in range(count)]


def _own_ports() -> list[int]:
    """Return the ports of this worker, starting from a random one."""
    try:
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except FileNotFoundError:  # There is no /proc.
        lowest = 32_768  # The kernel's default.
    top = lowest if lowest > 12_000 else 65_536
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
    ports = list(range(10_000, top))[worker::WORKERS]
    start = random.randrange(len(ports))
    return ports[start:] + ports[:start]
