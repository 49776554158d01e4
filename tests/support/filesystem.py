"""A small real file system that tests can fill or make read-only."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from support.peers import cannot, needs_root, peer, peers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def small_file_system(place: Path, size: str) -> Iterator[Path]:
    """Mount a tmpfs (tmpfs(5)) of *size* at *place*, which is created."""
    needs_root()
    mount, umount = peers("mount", "umount")
    place.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size}", "none"]
    if subprocess.run([mount, *options, place], capture_output=True, check=False).returncode:
        cannot("no right to mount")
    try:
        yield place
    finally:
        subprocess.run([umount, place], check=True)


def remount(place: Path, mode: str) -> None:
    """Remount it with the option ``ro`` or ``rw``."""
    subprocess.run([peer("mount"), "-o", f"remount,{mode}", place], check=True)
