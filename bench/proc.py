"""CPU time and memory of processes, and file systems, as the kernel reports them. See proc(5)."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

__all__ = [
    "KIB",
    "FileSystem",
    "cpu_seconds",
    "family",
    "forget_peak",
    "peak_bytes",
    "proportional_bytes",
]

KIB = 1024

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

# Fields of /proc/PID/stat, counted from the field behind the command name, the third of the line.
_STATE, _UTIME, _STIME, _CUTIME, _CSTIME = 0, 11, 12, 13, 14

_GONE = (FileNotFoundError, ProcessLookupError)


def family(pid: int) -> list[int]:
    """Return *pid* and all its running descendants."""
    members = [pid]
    for member in members:
        with suppress(*_GONE):
            for task in Path(f"/proc/{member}/task").iterdir():
                members += map(int, (task / "children").read_text().split())
    return members


def cpu_seconds(pid: int) -> float:
    """Return user and system time of *pid*, its children, and the children they have waited for."""
    ticks = 0
    for member in family(pid):
        with suppress(*_GONE):
            fields = _stat(member)
            ticks += sum(int(fields[n]) for n in (_UTIME, _STIME, _CUTIME, _CSTIME))
    return ticks / _TICKS_PER_SECOND


def _stat(pid: int) -> list[str]:
    # The command name may contain spaces and parentheses, so search for the last parenthesis.
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()


def proportional_bytes(pid: int) -> int:
    """Return the memory in use (PSS): a shared page counts in part."""
    return sum(_kib(member, "smaps_rollup", "Pss:") for member in family(pid)) * KIB


def forget_peak(pid: int) -> int:
    """Reset the high-water mark, and return the resident memory now, in bytes."""
    for member in family(pid):
        # Without the reset the mark is that of the whole life of the process.
        with suppress(OSError):
            Path(f"/proc/{member}/clear_refs").write_text("5", encoding="ascii")
    return sum(_kib(member, "status", "VmRSS:") for member in family(pid)) * KIB


def peak_bytes(pid: int) -> int:
    """Return the largest resident memory since :func:`forget_peak`."""
    return sum(_kib(member, "status", "VmHWM:") for member in family(pid)) * KIB


def _kib(pid: int, name: str, field: str) -> int:
    with suppress(*_GONE):
        for line in Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8").splitlines():
            if line.startswith(field):
                return int(line.split()[1])
    return 0


class FileSystem(NamedTuple):
    """A file system.

    :ivar device: the device, such as ``/dev/sda1``
    :ivar kind: the type, such as ``ext4``
    """

    device: str
    kind: str

    @classmethod
    def of_temporary_files(cls) -> Self:
        """Return the file system of the temporary files."""
        return cls._of(os.path.realpath(tempfile.gettempdir()))

    @classmethod
    def _of(cls, place: str) -> Self:
        found, file_system = "", cls("", "")
        for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
            device, point, kind = line.split()[:3]
            if os.path.commonpath([place, point]) == point and len(point) >= len(found):
                found, file_system = point, cls(device, kind)
        return file_system

    def __str__(self) -> str:
        file = Path("/sys/block", Path(self.device).name, "loop", "backing_file")
        with suppress(OSError):
            if self._of(file.read_text(encoding="utf-8").strip()).kind == "tmpfs":
                return f"{self.kind} on {self.device}, in memory"
        return f"{self.kind} on {self.device}"
