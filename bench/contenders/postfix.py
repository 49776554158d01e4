"""Postfix's smtp-sink: an SMTP server in C that does nothing else than to throw mail away."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from bench.contenders.base import HOST, Contender, Needs, Place, find_program

if TYPE_CHECKING:
    from typing import ClassVar

__all__ = ["SmtpSink", "postfix_version"]

NO_LIMIT = "it has no limit by which it refuses"


class SmtpSink(Contender):
    """The yardstick."""

    name = "smtp-sink"
    setup = "Postfix's test server in C, `-u nobody` where it is started as root"
    cannot: ClassVar[dict[str, str]] = {
        "W5": NO_LIMIT,
        "W6": NO_LIMIT,
        "W7": "it has no STARTTLS",
    }
    portion: ClassVar[float] = 2.0

    def missing(self) -> str:
        """Look for it."""
        return "" if find_program("smtp-sink") else "smtp-sink is not installed"

    def version(self) -> str:
        """Return Postfix's version."""
        return f"smtp-sink of {postfix_version()}"

    def command(self, place: Place, needs: Needs) -> list[str]:
        """Return its command line."""
        program = find_program("smtp-sink") or "smtp-sink"
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        return [program, *user, "-m", str(needs.capacity), f"{HOST}:{place.port}", "1024"]


def postfix_version() -> str:
    """Return Postfix's name and version, as far as it can be told."""
    postconf = find_program("postconf")
    if postconf is None:
        return "Postfix"
    told = subprocess.run(  # noqa: S603 - a program from PATH, no input
        [postconf, "-dh", "mail_version"], capture_output=True, text=True, timeout=10, check=False
    )
    return f"Postfix {told.stdout.strip()}".strip()
