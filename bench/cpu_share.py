"""Limit the CPU share of each process of a server with control groups (cgroups(7))."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["cpu_share", "cpu_share_fault"]

PERIOD_MICROSECONDS = 100_000

_FIRST_VERSION = Path("/sys/fs/cgroup/cpu")
_SECOND_VERSION = Path("/sys/fs/cgroup")


def cpu_share_fault() -> str:
    """Return why CPU shares cannot be limited, or an empty string."""
    try:
        with _group("fault", 0.5):
            return ""
    except OSError as error:
        return f"no control group for CPU time can be created: {error.strerror}"


@contextmanager
def cpu_share(pids: Iterable[int], share: float) -> Iterator[None]:
    """Limit each process, by a control group, to a share of one processor for the block.

    :param pids: the processes
    :param share: of one processor: 0.1 is a tenth
    :raises OSError: the control groups cannot be created
    """
    with ExitStack() as groups:
        for pid in pids:
            group = groups.enter_context(_group(str(pid), share))
            (group / "cgroup.procs").write_text(str(pid), encoding="ascii")
        yield


@contextmanager
def _group(name: str, share: float) -> Iterator[Path]:
    quota = round(PERIOD_MICROSECONDS * share)
    first = _FIRST_VERSION.is_dir()
    parent = _FIRST_VERSION if first else _SECOND_VERSION
    group = parent / f"smtpd-fork-bench-{os.getpid()}-{name}"
    group.mkdir()
    try:
        if first:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_MICROSECONDS), encoding="ascii")
            (group / "cpu.cfs_quota_us").write_text(str(quota), encoding="ascii")
        else:
            (group / "cpu.max").write_text(f"{quota} {PERIOD_MICROSECONDS}", encoding="ascii")
        yield group
    finally:
        _remove(group, parent)


def _remove(group: Path, parent: Path) -> None:
    for pid in (group / "cgroup.procs").read_text(encoding="ascii").split():
        with suppress(ProcessLookupError):
            (parent / "cgroup.procs").write_text(pid, encoding="ascii")
    group.rmdir()
