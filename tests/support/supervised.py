"""The child processes of a supervisor (``--processes``), from its log."""

from __future__ import annotations

import re
import socket
import urllib.request
from base64 import b64encode
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from support.daemon import LOCAL, PATIENCE, Daemon, until

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path
    from smtplib import SMTP

__all__ = [
    "COUNTING", "PATIENT", "TWO", "attempt_auth", "children", "figures", "greetings",
    "limit_failures", "page", "pids",
]  # fmt: skip

TWO = (*LOCAL, "--processes", "2")

PATIENT = ("--fleet-timeout", "5s")
"""A setting with which the processes share their limits even on a busy machine."""

SERVES = r"process (\d) of \d serves, pid (\d+)$"

COUNTING = """
import os

log = os.open("taken", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


class Handler:
    async def handle_DATA(self, server, session, envelope):
        os.write(log, b"%d\\n" % os.getpid())
        return "250 taken"
"""


def pids(log: str, of: int = 2) -> list[int]:
    """Return the pids of all processes that have served: first ones by number, then later ones."""
    found = re.findall(SERVES, log, re.MULTILINE)
    return [int(pid) for _, pid in (*sorted(found[:of]), *found[of:])]


def children(daemon: Daemon, count: int = 2) -> list[int]:
    """Return the pids of the processes, once *count* have served."""
    until(lambda: len(pids(daemon.log)) >= count, f"{count} serve")
    return pids(daemon.log)


def greetings(
    daemon: Daemon,
    count: int,
    clients: ExitStack,
    source: str = "127.0.0.1",
    refused: bytes = b"421 ",
) -> int:
    """Connect *count* clients concurrently; return how many are greeted. Others must be refused."""
    address = ("127.0.0.1", daemon.port)
    socks = [socket.create_connection(address, PATIENCE, (source, 0)) for _ in range(count)]
    replies = [clients.enter_context(sock).recv(200)[:4] for sock in socks]
    assert set(replies) <= {b"220 ", refused}
    return replies.count(b"220 ")


BACKEND = """
from aiosmtpd.smtp import AuthResult


def check(server, session, envelope, mechanism, data):
    return AuthResult(success=data.password == b"right", handled=False, auth_data=data.login)
"""


def limit_failures(folder: Path, limits: str) -> tuple[str, ...]:
    """Return the options of a daemon with the handler auth; its only password is ``right``."""
    (folder / "backend.py").write_text(BACKEND)
    (folder / "auth.toml").write_text(
        '[[handler]]\nuse = "auth"\nauthenticator = "backend:check"\nrequire-tls = "never"\n'
        f'{limits}\n\n[[handler]]\nuse = "discard"\n'
    )
    return ("-l", "127.0.0.1:0", "--config", "auth.toml")


def attempt_auth(client: SMTP, password: str) -> int:
    """Return the code of the reply to a login of bob."""
    client.ehlo()
    return client.docmd("AUTH PLAIN", b64encode(f"\0bob\0{password}".encode()).decode())[0]


def page(daemon: Daemon, name: str, seconds: float = 10) -> str:
    """Return a page of ``--metrics``, which must come within *seconds*."""
    place = next(line for line in daemon.lines if "metrics on" in line).rpartition(" ")[2]
    with urllib.request.urlopen(f"http://{place}/{name}", timeout=seconds) as answer:
        text: str = answer.read().decode()
        return text


def figures(daemon: Daemon) -> dict[tuple[str, ...], float]:
    """Return the samples, by name and the values of their labels."""
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page(daemon, "metrics"))
        for sample in family.samples
    }
