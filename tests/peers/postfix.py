"""Postfix: a separate instance, with its own configuration and queue."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from support.peers import needs_root, peer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["instance"]

_MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mydestination =
mynetworks =
alias_maps =
alias_database =
maillog_file = {folder}/log
maillog_file_prefixes = {folder}
"""

_MASTER = """\
postlog unix-dgram n - n - 1 postlogd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
discard unix - - n - - discard
smtp unix - - n - - smtp
anvil unix - - n - 1 anvil
"""


@contextmanager
def instance(folder: Path, settings: str, services: str = "") -> Iterator[Path]:
    """Run an instance; yield the directory of its configuration.

    :param folder: its directory; the user postfix must be able to enter it
    :param settings: lines of its main.cf, in addition to the necessary ones
    :param services: additional lines of its master.cf
    """
    needs_root()
    configuration = folder / "etc"
    for name in ("etc", "queue", "data"):
        (folder / name).mkdir()
    shutil.chown(folder / "data", "postfix")
    (configuration / "main.cf").write_text(_MAIN.format(folder=folder) + settings)
    (configuration / "master.cf").write_text(services + _MASTER)
    command = [peer("postfix"), "-c", str(configuration)]
    subprocess.run([*command, "start"], check=True, capture_output=True, timeout=60)
    try:
        yield configuration
    finally:
        subprocess.run([*command, "stop"], check=True, capture_output=True, timeout=60)
