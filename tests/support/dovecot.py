"""Dovecot, with its own configuration and mailboxes: LMTP, and its authentication service."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from support.daemon import PATIENCE, end
from support.peers import needs_root, peer, proc
from support.ports import free_port
from support.processes import children

if TYPE_CHECKING:
    from collections.abc import Iterator

_SETTINGS = """\
base_dir = {folder}/run
state_dir = {folder}/state
protocols = lmtp
log_path = {folder}/log
ssl = no
listen = 127.0.0.1
default_internal_user = nobody
default_internal_group = nogroup
default_login_user = nobody
first_valid_uid = 1
mail_location = maildir:{folder}/mail/%u
mail_uid = mail
mail_gid = mail
mail_save_crlf = yes
mail_plugins = quota
passdb {{
  driver = passwd-file
  args = scheme=PLAIN {folder}/users
}}
userdb {{
  driver = passwd-file
  args = {folder}/users
}}
plugin {{
  quota = maildir:
}}
service lmtp {{
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {port}
  }}
  unix_listener lmtp {{
    mode = 0600
  }}
}}
service auth {{
  unix_listener auth-client {{
    mode = 0666
  }}
}}
service anvil {{
  chroot =
  # Seconds that a client waits after failures.
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service stats {{
  chroot =
}}
protocol lmtp {{
  postmaster_address = postmaster@example.com
  hostname = mx.example.com
}}
{more}
"""

_USERS = """\
b@example.com:x::::::
c@example.com:x::::::
full@example.com:x::::::userdb_quota_rule=*:bytes=1K
"""


class Dovecot:
    """A running Dovecot.

    :ivar address: of LMTP over TCP; :ivar unix: of its unix socket
    :ivar auth: of the authentication service's
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{port}"
        self.unix = f"unix:{folder}/run/lmtp"
        self.auth = f"unix:{folder}/run/auth-client"
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it listens."""
        command = [peer("dovecot"), "-F", "-c", str(self.folder / "dovecot.conf")]
        self._process = subprocess.Popen(command)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port)).close()
                break
            except OSError:
                assert self._process.poll() is None, self.log()
                assert time.monotonic() < deadline, self.log()
                time.sleep(0.02)

    def stop(self) -> None:
        assert self._process is not None
        end(self._process)

    def auth_process(self) -> int:
        """Return the process that serves :attr:`auth`; Dovecot starts it at the first request."""
        assert self._process is not None
        (found,) = [
            pid
            for pid in children(self._process.pid)
            if proc(pid, "comm").read_text().strip() == "auth"
        ]
        return found

    def messages(self, user: str) -> list[bytes]:
        """Return a user's new messages, the oldest first."""
        new = self.folder / "mail" / user / "new"
        files = (
            sorted(new.iterdir(), key=lambda each: each.stat().st_mtime_ns) if new.exists() else []
        )
        return [each.read_bytes() for each in files]

    def log(self) -> str:
        return (self.folder / "log").read_text()


@contextmanager
def dovecot(more: str = "") -> Iterator[Dovecot]:
    """Run Dovecot.

    :param more: additional settings
    """
    needs_root()
    peer("dovecot")
    folder = Path(tempfile.mkdtemp(prefix="dovecot-", dir="/tmp"))
    folder.chmod(0o755)
    port = free_port("127.0.0.1")
    (folder / "mail").mkdir()
    shutil.chown(folder / "mail", "mail", "mail")
    (folder / "users").write_text(_USERS)
    configuration = _SETTINGS.format(folder=folder, port=port, more=more)
    (folder / "dovecot.conf").write_text(configuration)
    running = Dovecot(folder, port)
    try:
        running.start()
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder)
