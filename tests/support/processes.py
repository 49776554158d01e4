"""Facts about a process from the system: its listening addresses, children, and user ids."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from ipaddress import ip_address

from support.daemon import is_alive
from support.peers import proc


def listening(pid: int) -> set[tuple[str, int]]:
    """Return the addresses and ports that a process listens on."""
    mine = set()
    for descriptor in proc(pid, "fd").iterdir():
        with suppress(OSError):
            mine.add(os.readlink(descriptor))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in proc(pid, "net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in mine:
                host, _, port = fields[1].partition(":")
                found.add((_address(host), int(port, 16)))
    return found


def _address(digits: str) -> str:
    """Parse an address of /proc/net: 32-bit words in the machine's byte order."""
    words = [bytes.fromhex(digits[i : i + 8])[::-1] for i in range(0, len(digits), 8)]
    return str(ip_address(b"".join(words)))


def children(pid: int) -> list[int]:
    """Return the running child processes of a process."""
    listed = [(thread / "children").read_text().split() for thread in proc(pid, "task").iterdir()]
    return [int(word) for words in listed for word in words if is_alive(int(word))]


def identity(pid: int) -> dict[str, list[str]]:
    """Return the user ids and group ids of a process: real, effective, saved, ..."""
    status = proc(pid, "status").read_text()
    return {
        name: sorted(set(values.split()))
        for name, values in re.findall(r"^(Uid|Gid|Groups):(.*)$", status, re.MULTILINE)
    }
