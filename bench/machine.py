"""The machine of a run, and the measured versions: the first part of the page."""

from __future__ import annotations

import os
import platform
import subprocess
import sysconfig
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bench.contenders.postfix import postfix_version
from bench.proc import FileSystem
from bench.process import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bench.contenders import Contender

__all__ = ["describe"]

_GIB = 1024**3


def describe(present: Iterable[Contender]) -> Iterator[tuple[str, str]]:
    """Yield each fact with its name."""
    yield "date", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    yield "commit", _commit()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    yield "machine", f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB of memory"
    yield "file system of the mail", str(FileSystem.of_temporary_files())
    yield "kernel", f"{platform.system()} {platform.release()}"
    yield "load at the start", f"{os.getloadavg()[0]:.2f} (one minute's average)"
    optimised = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    yield (
        "Python",
        (
            f"{platform.python_implementation()} {platform.python_version()}, "
            f"{platform.python_compiler()}, built "
            f"{'with' if optimised else 'without'} profile-guided optimisation"
        ),
    )
    yield "client", f"smtp-source of {postfix_version()}"
    yield "servers", "; ".join(dict.fromkeys(contender.version() for contender in present))


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _commit() -> str:
    try:
        name = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--", "smtpd_fork")
    except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return "unknown"
    return f"{name}, and changes to smtpd_fork/ that are not committed" if changed else name


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    ended = subprocess.run(  # noqa: S603 - the arguments are written above
        command, capture_output=True, text=True, timeout=10, check=True
    )
    return ended.stdout.strip()
