"""Dovecot: its LMTP server, which puts messages into a Maildir."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from bench.contenders.base import HOST, Contender, Needs, Place, find_program

if TYPE_CHECKING:
    from pathlib import Path
    from typing import ClassVar

__all__ = ["Dovecot", "lmtp_socket"]

USER = "b@example.com"

_SETTINGS = """\
base_dir = {folder}/run
state_dir = {folder}/state
protocols = lmtp
log_path = {folder}/log
ssl = no
listen = {host}
default_internal_user = nobody
default_internal_group = nogroup
default_login_user = nobody
first_valid_uid = 1
mail_location = maildir:{folder}/mail/%u
mail_uid = mail
mail_gid = mail
passdb {{
  driver = passwd-file
  args = {folder}/users
}}
userdb {{
  driver = passwd-file
  args = {folder}/users
}}
service lmtp {{
  inet_listener lmtp {{
    address = {host}
    port = {port}
  }}
  unix_listener lmtp {{
    mode = 0600
  }}
}}
service anvil {{
  chroot =
}}
service stats {{
  chroot =
}}
protocol lmtp {{
  postmaster_address = postmaster@example.com
  hostname = localhost
}}
"""


def lmtp_socket(folder: Path) -> str:
    """Return the path of the unix socket of a Dovecot that was started in *folder*."""
    return str(folder / "run" / "lmtp")


class Dovecot(Contender):
    """A separate Dovecot instance."""

    name = "dovecot"
    setup = "an instance of its own with one mailbox, a Maildir; it is used only by LMTP"
    only: ClassVar[tuple[str, ...]] = ("W11",)

    def missing(self) -> str:
        """Check for Dovecot, for its LMTP server, and for root."""
        if find_program("dovecot") is None:
            return "Dovecot is not installed"
        return "" if os.geteuid() == 0 else "Dovecot can be started only as root"

    def version(self) -> str:
        """Return the name and the version."""
        ended = subprocess.run(  # noqa: S603 - a program from PATH, no input
            [find_program("dovecot") or "dovecot", "--version"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        return f"Dovecot {ended.stdout.partition(' ')[0]}".strip()

    def command(self, place: Place, needs: Needs) -> list[str]:  # noqa: ARG002 - see Contender
        """Write the configuration, and return the command line."""
        place.folder.chmod(0o755)
        mail = place.folder / "mail"
        mail.mkdir(exist_ok=True)
        shutil.chown(mail, "mail", "mail")
        (place.folder / "users").write_text(f"{USER}:x::::::\n", encoding="utf-8")
        configuration = place.folder / "dovecot.conf"
        settings = _SETTINGS.format(folder=place.folder, host=HOST, port=place.port)
        configuration.write_text(settings, encoding="utf-8")
        return [find_program("dovecot") or "dovecot", "-F", "-c", str(configuration)]
