"""Process: CPU time, memory and descriptors of this process, with the usual names of metrics.

The ProcessCollector of prometheus-client has the same metrics, but lists /proc/self/fd to count
descriptors: with 10,000 sessions that stops all Python threads for 20 ms. Linux 6.2 and newer
report the number; only on older kernels the directory is listed.
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
    """Metrics of this process, without the values that the system does not provide.

    Create it while few files are open: it uses the ProcessCollector once, for the start time.
    """

    def __init__(self) -> None:
        self._start_time = {
            sample.name: sample.value
            for metric in ProcessCollector(registry=None).collect()
            for sample in metric.samples
            if metric.name == "process_start_time_seconds"
        }

    def values(self) -> dict[str, float]:
        """Return the values by name of the metric."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        values: dict[str, float] = dict(self._start_time)
        values["process_cpu_seconds_total"] = used.ru_utime + used.ru_stime
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        values["process_max_fds"] = soft if soft != resource.RLIM_INFINITY else float("inf")
        with suppress(OSError):
            values["process_open_fds"] = open_descriptors()
        with suppress(OSError, ValueError):
            mapped, resident = _MEMORY.read_text().split()[:2]
            values["process_virtual_memory_bytes"] = int(mapped) * _PAGE
            values["process_resident_memory_bytes"] = int(resident) * _PAGE
        return values


def open_descriptors() -> int:
    """Return the number of open file descriptors.

    :raises OSError: /proc is not available
    """
    return os.stat(_DESCRIPTORS).st_size or len(os.listdir(_DESCRIPTORS))  # noqa: PTH116, PTH208 - only the number is needed, not 10,000 paths
