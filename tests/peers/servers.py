"""Other servers with their defaults: they accept mail for example.com and discard it."""

from __future__ import annotations

import shutil
import socket
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from support.daemon import Daemon, end, until
from support.peers import npm_package, peer, unpacked
from support.ports import free_ports

from peers.postfix import instance
from peers.programs import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

__all__ = ["HOSTNAME", "SERVERS", "SIZE_LIMIT", "smtpd_fork"]

HOSTNAME = "mx.example.com"

SIZE_LIMIT = 100_000
"""Maximum size of a message in all servers, octets; small, so that a test of it is quick."""

_HANDLER = """\
class Domain:
    async def handle_RCPT(self, server, session, envelope, address, rcpt_options):
        if address.rpartition("@")[2] not in ("example.com", "postmaster"):
            return "550 5.7.1 not ours"
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(rcpt_options)
        return "250 2.1.5 OK"
"""

_POSTFIX = """\
myhostname = {hostname}
relay_domains = example.com
relay_transport = discard:
message_size_limit = {size}
smtpd_error_sleep_time = 0
"""

_EXIM = """\
exim_path = {program}
spool_directory = /var/spool/exim
log_file_path = /var/spool/exim/%slog
primary_hostname = {hostname}
exim_user = mail
exim_group = mail
message_size_limit = {size}
acl_smtp_rcpt = rcpt
begin acl
rcpt:
  accept domains = example.com
  accept local_parts = postmaster
         domains = {hostname}
  deny message = relaying denied
begin routers
all:
  driver = redirect
  data = :blackhole:
"""

_HARAKA_PLUGIN = """\
'use strict';
exports.hook_lookup_rdns = (next) => next(OK, 'localhost');
exports.hook_rcpt = (next, connection, params) =>
  [null, 'example.com'].includes(params[0].host) ? next(OK) : next(DENY, 'not ours');
exports.hook_queue = (next) => next(OK);
"""


@contextmanager
def smtpd_fork(folder: Path, *options: str) -> Iterator[int]:
    """Serve with the default settings and *options*; yield the port."""
    (folder / "ours.py").write_text(_HANDLER)
    handlers = ("--handler", "ours:Domain", "--handler", "discard")
    given = ("--hostname", HOSTNAME, "--max-message-size", str(SIZE_LIMIT), *handlers, *options)
    with Daemon("-l", "127.0.0.1:0", *given, cwd=folder) as daemon:
        yield daemon.port


@contextmanager
def postfix(folder: Path) -> Iterator[int]:
    (port,) = free_ports(1)
    settings = _POSTFIX.format(hostname=HOSTNAME, size=SIZE_LIMIT)
    with instance(folder, settings, f"127.0.0.1:{port} inet n - n - - smtpd\n"):
        _until_open(port)
        yield port


@contextmanager
def exim(folder: Path) -> Iterator[int]:
    (port,) = free_ports(1)
    program = unpacked("usr/sbin/exim4", package="exim4-daemon-light")
    place = Place(folder, port)
    text = _EXIM.format(program=program, hostname=HOSTNAME, size=SIZE_LIMIT)
    place.write("exim.conf", text)
    arguments = ("-C", "/etc/exim.conf", "-bdf", "-oX", f"127.0.0.1.{port}")
    with _running(port, [*place.privately(program), *arguments]):
        yield port


@contextmanager
def haraka(folder: Path) -> Iterator[int]:
    (port,) = free_ports(1)
    package = npm_package("Haraka", "3.3.4")
    files = {
        "config/smtp.ini": f"listen=127.0.0.1:{port}\nnodes=0\n",
        "config/me": f"{HOSTNAME}\n",
        "config/plugins": "discard\n",
        "plugins/discard.js": _HARAKA_PLUGIN,
    }
    shutil.copytree(package / "config", folder / "config")
    (folder / "plugins").mkdir()
    settings = folder / "config" / "connection.ini"
    settings.write_text(settings.read_text().replace("[max]", f"[max]\nbytes={SIZE_LIMIT}"))
    for name, text in files.items():
        (folder / name).write_text(text)
    with _running(port, [peer("node"), str(package / "bin" / "haraka"), "-c", str(folder)]):
        yield port


@contextmanager
def _running(port: int, command: list[str]) -> Iterator[None]:
    """Run a server in the foreground."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _until_open(port)
        yield
    finally:
        end(process)


def _until_open(port: int) -> None:
    def is_open() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    until(is_open, f"a server listens on port {port}")


SERVERS: dict[str, Callable[[Path], AbstractContextManager[int]]] = {
    "smtpd-fork": smtpd_fork,
    "Postfix": postfix,
    "Exim": exim,
    "Haraka": haraka,
}
"""By the heading of its column in docs/accepted-mail.md."""
