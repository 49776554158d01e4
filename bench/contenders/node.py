"""The servers on Node.js: nodemailer's smtp-server, and Haraka. They are installed into a cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from bench.contenders.base import HOST, Contender, Needs, Place

if TYPE_CHECKING:
    from typing import ClassVar

__all__ = ["Haraka", "NodemailerSmtpServer", "node_version"]

INSTALL_SECONDS = 180.0

NO_MAILDIR = "it cannot write a Maildir"

_PEERS = Path(__file__).parents[1] / "peers"


def _cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "smtpd-fork-bench"


@cache
def node_version() -> str:
    """Return the version of Node.js; an empty string if there is none."""
    node = shutil.which("node")
    if node is None:
        return ""
    ended = subprocess.run(  # noqa: S603 - a program from PATH, no input
        [node, "--version"], capture_output=True, text=True, timeout=10, check=False
    )
    return ended.stdout.strip()


class NodePackage(Contender):
    """One version of an npm package, in a separate directory."""

    package: ClassVar[str]
    release: ClassVar[str]

    @property
    def home(self) -> Path:
        """The directory of the package."""
        folder = _cache_folder() / f"{self.package}-{self.release}"
        return folder / "node_modules" / self.package

    def missing(self) -> str:
        """Install the package if it is not in the cache."""
        if not node_version():
            return "Node.js is not installed"
        if (self.home / "package.json").is_file():
            return ""
        npm = shutil.which("npm")
        if npm is None:
            return "npm is not installed"
        folder = self.home.parents[1]
        folder.mkdir(parents=True, exist_ok=True)
        quiet = ("--no-audit", "--no-fund", "--no-save", "--ignore-scripts", "--loglevel=error")
        wanted = f"{self.package}@{self.release}"
        try:
            subprocess.run(  # noqa: S603 - name and version are written above
                [npm, "install", "--prefix", str(folder), *quiet, wanted],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=INSTALL_SECONDS,
                check=True,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return f"npm could not install {wanted}"
        return ""

    def version(self) -> str:
        """Return the name and the version, and those of Node.js."""
        return f"{self.package} {self.release} on Node.js {node_version()}"


class NodemailerSmtpServer(NodePackage):
    """nodemailer's server: ``bench/peers/nodemailer.cjs``."""

    name = "nodemailer"
    package = "smtp-server"
    release = "3.21.6"
    setup = (
        "`smtp-server` without its log and without reverse look-ups. It greets each client after "
        "100 ms at the earliest, which cannot be changed: ignore its messages per second where "
        "each message has its own connection"
    )
    cannot: ClassVar[dict[str, str]] = {
        "W6": "it has one limit for all addresses together",
        "W12": NO_MAILDIR,
    }
    portion: ClassVar[float] = 0.25
    portion_of_connections: ClassVar[float | None] = 0.1

    def command(self, place: Place, needs: Needs) -> list[str]:
        """Return the command line of the script."""
        options = {
            "package": str(self.home),
            "host": HOST,
            "port": place.port,
            "maxClients": needs.limit,
            "certificate": str(place.certificates.certificate) if needs.tls else "",
            "key": str(place.certificates.key) if needs.tls else "",
        }
        return ["node", str(_PEERS / "nodemailer.cjs"), json.dumps(options)]


class Haraka(NodePackage):
    """Haraka with one plugin that accepts every message: ``bench/peers/haraka_discard.js``."""

    name = "haraka"
    package = "Haraka"
    release = "3.3.4"
    setup = (
        "one process, its log at warnings, and one plugin that answers reverse look-ups itself, "
        "accepts every recipient and discards every message; in W10 without the last, and with "
        "its plugin `queue/smtp_forward`"
    )
    cannot: ClassVar[dict[str, str]] = {
        "W5": "its limit is a plugin that needs Redis",
        "W6": "its limit is a plugin that needs Redis",
        "W7": "not set up for TLS here",
        "W12": NO_MAILDIR,
    }
    portion: ClassVar[float] = 0.2

    def command(self, place: Place, needs: Needs) -> list[str]:
        """Write the configuration, and return the command line."""
        files = {
            "config/smtp.ini": f"listen={HOST}:{place.port}\nnodes=0\n",
            # This file replaces the default one, so it needs all sections.
            "config/connection.ini": (
                f"[max]\nbytes={needs.largest}\n[message]\nhelo=hello\nclose=bye\n"
                "[uuid]\nbanner_chars=0\ndeny_chars=0\n"
                "[headers]\nmax_lines=1000\nmax_received=100\n[haproxy]\nhosts[]=\n"
            ),
            "config/log.ini": "[main]\nlevel=warn\n",
            "config/me": "localhost\n",
            "config/plugins": f"accept\n{'queue/smtp_forward' if needs.hop else 'discard'}\n",
            **{
                f"plugins/{name}.js": (_PEERS / f"haraka_{name}.js").read_text(encoding="utf-8")
                for name in ("accept", "discard")
            },
        }
        if needs.hop:
            host, _, port = needs.hop.rpartition(":")
            files["config/smtp_forward.ini"] = f"host={host}\nport={port}\n"
        for name, text in files.items():
            path = place.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return ["node", str(self.home / "bin" / "haraka"), "-c", str(place.folder)]
