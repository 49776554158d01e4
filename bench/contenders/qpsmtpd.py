"""qpsmtpd-forkserver, which starts a process for each connection."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from bench.contenders.base import HOST, Contender, Needs, Place, find_program

if TYPE_CHECKING:
    from typing import ClassVar

__all__ = ["Qpsmtpd"]

PLUGINS = Path("/usr/share/qpsmtpd/plugins")
"""The directory of Debian's package."""

USER = "nobody"

_NO_DNS = """\
sub register {
    no warnings 'redefine';
    *Qpsmtpd::TcpServer::tcpenv = sub { return ($_[0], $_[1], 'Unknown') };
}
"""
"""Disables the DNS look-up of each client's name, which no option of qpsmtpd disables."""


class Qpsmtpd(Contender):
    """qpsmtpd-forkserver; this daemon has the same options."""

    name = "qpsmtpd"
    setup = (
        "`qpsmtpd-forkserver` with its plugins `rcpt_ok` and `queue/maildir`, without reverse "
        "look-ups; it syncs neither files nor directories"
    )
    only: ClassVar[tuple[str, ...]] = ("W12",)

    def missing(self) -> str:
        """Check for qpsmtpd-forkserver."""
        if find_program("qpsmtpd-forkserver") is None or not PLUGINS.is_dir():
            return "qpsmtpd-forkserver is not installed"
        return ""

    def version(self) -> str:
        """Return the name and the version."""
        module = Path("/usr/share/perl5/Qpsmtpd.pm")
        found = module.is_file() and re.search(
            r"VERSION\s*=\s*['\"]?([\d.]+)", module.read_text(encoding="utf-8")
        )
        return f"qpsmtpd {found[1] if found else ''}".strip()

    def command(self, place: Place, needs: Needs) -> list[str]:
        """Write the configuration, and return the command line."""
        config = {
            "logging": "logging/warn LOGWARN",
            "loglevel": "4",
            "me": "localhost",
            "plugin_dirs": f"{PLUGINS}\n{place.folder}/plugins",
            "plugins": f"no_dns\nrcpt_ok\nqueue/maildir {place.mail}",
            "rcpthosts": "example.com",
            "spool_dir": f"{place.folder}/spool",
            "databytes": str(needs.largest),
        }
        files = {f"config/{name}": f"{text}\n" for name, text in config.items()}
        for name, text in {**files, "plugins/no_dns": _NO_DNS}.items():
            path = place.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        (place.folder / "spool").mkdir(0o700, exist_ok=True)
        user = []
        if os.geteuid() == 0:
            place.folder.chmod(0o755)
            place.mail.mkdir(exist_ok=True)
            for path in (place.mail, place.folder / "spool"):
                shutil.chown(path, USER)
            user = ["-u", USER]
        program = find_program("qpsmtpd-forkserver") or "qpsmtpd-forkserver"
        return [
            *("env", f"QPSMTPD_CONFIG={place.folder}/config", program, *user),
            *("-l", f"{HOST}:{place.port}"),
            *("-c", str(needs.capacity), "-m", str(needs.limit or needs.capacity)),
        ]
