"""Process: CPU time, memory and descriptors, under the names that all exporters use.

The ProcessCollector of prometheus-client has the same metrics, but lists /proc/self/fd to count
descriptors: with 10,000 sessions that stops all Python threads for 20 ms. Linux 6.2 and newer tell
the number; only older kernels are asked for the list.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

from prometheus_client import ProcessCollector

__all__ = ["Process"]

_DESCRIPTORS = "/proc/self/fd"
_MEMORY = Path("/proc/self/statm")
_PAGE = resource.getpagesize()


class Process:
    """The current process; values that the system does not provide are left out.

    Constructed while few files are open: the start time of the process is looked up once.
    """

    def __init__(self) -> None:
        self._begun = {
            sample.name: sample.value
            for metric in ProcessCollector(registry=None).collect()
            for sample in metric.samples
            if metric.name == "process_start_time_seconds"
        }

    def figures(self) -> dict[str, float]:
        """Return the values, by the name of the metric."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        figures: dict[str, float] = dict(self._begun)
        figures["process_cpu_seconds_total"] = used.ru_utime + used.ru_stime
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        figures["process_max_fds"] = soft if soft != resource.RLIM_INFINITY else float("inf")
        with suppress(OSError):
            figures["process_open_fds"] = open_descriptors()
        with suppress(OSError, ValueError):
            mapped, resident = _MEMORY.read_text().split()[:2]
            figures["process_virtual_memory_bytes"] = int(mapped) * _PAGE
            figures["process_resident_memory_bytes"] = int(resident) * _PAGE
        return figures


def open_descriptors() -> int:
    """Return the number of open file descriptors.

    :raises OSError: there is no /proc
    """
    return os.stat(_DESCRIPTORS).st_size or len(os.listdir(_DESCRIPTORS))  # noqa: PTH116, PTH208 - a number is wanted, not 10,000 paths
