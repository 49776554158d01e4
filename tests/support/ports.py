"""Ports that a program under test may bind, whatever other tests and their clients do meanwhile."""

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
"""Parts that the ports are divided into: one for each worker of pytest-xdist."""

_taken: Iterator[int] | None = None


def free_port(host: str = "0.0.0.0") -> int:
    """Return a port of *host* that nobody has, and that nobody else is given.

    Not one that bind(2) of port 0 gives: until the program binds it, it could become the source
    port of some connection, or another test's. So it is below the range that those are taken from.
    """
    global _taken  # noqa: PLW0603 - of this process, like the ports
    if _taken is None:
        _taken = itertools.cycle(_own_ports())
    for port in _taken:
        with socket.socket() as sock, suppress(OSError):
            sock.bind((host, port))
            return port
    raise AssertionError("a cycle does not end")


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return so many of them."""
    return [free_port(host) for _ in range(count)]


def _own_ports() -> list[int]:
    """Return the ports of this worker, from a random one on."""
    try:
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except FileNotFoundError:  # no /proc
        lowest = 32_768  # the kernel's default
    top = lowest if lowest > 12_000 else 65_536
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
    ports = list(range(10_000, top))[worker::WORKERS]
    start = random.randrange(len(ports))
    return ports[start:] + ports[:start]
