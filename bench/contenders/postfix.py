"""Postfix, and its test server smtp-sink, which discards messages."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from bench.contenders.base import HOST, Contender, Needs, Place, find_program

if TYPE_CHECKING:
    from typing import ClassVar

__all__ = ["Postfix", "SmtpSink", "postfix_version"]

NO_LIMIT = "it has no limit per address"


class SmtpSink(Contender):
    """The reference server that the others are compared with."""

    name = "smtp-sink"
    setup = "Postfix's test server in C, `-u nobody` where it is started as root"
    cannot: ClassVar[dict[str, str]] = {
        "W5": NO_LIMIT,
        "W6": NO_LIMIT,
        "W7": "it has no STARTTLS",
        "W12": "it stores no mail",
    }
    portion: ClassVar[float] = 2.0

    def missing(self) -> str:
        """Check for smtp-sink."""
        return "" if find_program("smtp-sink") else "smtp-sink is not installed"

    def version(self) -> str:
        """Return Postfix's version."""
        return f"smtp-sink of {postfix_version()}"

    def command(self, place: Place, needs: Needs) -> list[str]:
        """Return the command line."""
        program = find_program("smtp-sink") or "smtp-sink"
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        return [program, *user, "-m", str(needs.capacity), f"{HOST}:{place.port}", "1024"]


_MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = localhost
mydestination =
mynetworks =
alias_maps =
alias_database =
relay_domains = example.com
relay_transport = discard:
message_size_limit = {largest}
default_process_limit = {capacity}
smtpd_client_connection_count_limit = 0
smtpd_peername_lookup = no
in_flow_delay = 0
maillog_file = {folder}/log
maillog_file_prefixes = {folder}
"""

_TLS = """\
smtpd_tls_security_level = may
smtpd_tls_chain_files = {key}, {certificate}
"""

_THROW_AWAY = """\
smtpd_recipient_restrictions = check_recipient_access static:DISCARD
"""

_SERVICES = """\
127.0.0.1:{port} inet n - n - - smtpd
postlog unix-dgram n - n - 1 postlogd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
proxymap unix - - n - - proxymap
discard unix - - n - - discard
anvil unix - - n - 1 anvil
"""


class Postfix(Contender):
    """A separate Postfix instance."""

    name = "postfix"
    setup = (
        "an instance of its own with its defaults, but without limits per client, reverse "
        "look-ups, or a delay while mail arrives faster than it leaves. In W12 and W13 each "
        "message is in the queue when it is answered, and discard(8) removes it from there, so "
        "that it is written once; in W7 `DISCARD` at the recipient removes it before that; in W10 "
        "it has `smtpd_proxy_filter` and no queue. All its processes are counted together"
    )
    only: ClassVar[tuple[str, ...]] = ("W7", "W10", "W12", "W13")

    def missing(self) -> str:
        """Check for Postfix, and for root."""
        if not (find_program("postfix") and find_program("postconf")):
            return "Postfix is not installed"
        return "" if os.geteuid() == 0 else "Postfix can be started only as root"

    def version(self) -> str:
        """Return the name and the version."""
        return postfix_version()

    def command(self, place: Place, needs: Needs) -> list[str]:
        """Write the configuration, and return the command line of the master process."""
        place.folder.chmod(0o755)
        configuration = place.folder / "etc"
        for name in ("etc", "queue", "data"):
            (place.folder / name).mkdir(exist_ok=True)
        shutil.chown(place.folder / "data", "postfix")
        settings = _MAIN.format(folder=place.folder, largest=needs.largest, capacity=needs.capacity)
        if needs.tls:
            for path in (place.certificates.certificate, place.certificates.key):
                path.chmod(0o600)
            settings += _TLS.format(
                key=place.certificates.key, certificate=place.certificates.certificate
            )
        if needs.milter:
            settings += f"smtpd_milters = {_milter(needs.milter)}\n"
        if needs.hop:
            settings += f"smtpd_proxy_filter = {needs.hop}\n"
        elif not needs.keep and not needs.queue:
            settings += _THROW_AWAY
        (configuration / "main.cf").write_text(settings, encoding="utf-8")
        services = _SERVICES.format(port=place.port)
        (configuration / "master.cf").write_text(services, encoding="utf-8")
        postfix = find_program("postfix") or "postfix"
        # Create the directories of the queue.
        subprocess.run(  # noqa: S603 - a program from PATH, no input
            [postfix, "-c", str(configuration), "check"],
            capture_output=True,
            timeout=60,
            check=False,
        )
        master = Path(_default("daemon_directory")) / "master"
        return [str(master), "-s", "-c", str(configuration)]


def _milter(address: str) -> str:
    """Return the address of a milter in Postfix's notation."""
    return address if address.startswith("unix:") else f"inet:{address}"


def postfix_version() -> str:
    """Return Postfix's name, and its version if it is known."""
    return f"Postfix {_default('mail_version')}".strip()


def _default(parameter: str) -> str:
    """Return the default value of a parameter; without Postfix an empty string."""
    postconf = find_program("postconf")
    if postconf is None:
        return ""
    ended = subprocess.run(  # noqa: S603 - a program from PATH, no input
        [postconf, "-dh", parameter], capture_output=True, text=True, timeout=10, check=False
    )
    return ended.stdout.strip()
