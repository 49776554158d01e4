"""Elsewhere: whether another process has a free slot, while this one has none.

``--when-full refuse`` and ``defer:SECONDS`` accept clients for whom there is no slot. With several
processes that has to wait until there is none anywhere: a full process says so, and leaves clients
in the backlog until the supervisor says that all are full.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smtpd_fork.server import Server
    from smtpd_fork.supervisor.line import Line
    from smtpd_fork.supervisor.serving_process import ServingProcess

__all__ = ["Elsewhere", "FullProcesses"]


class Elsewhere:
    """A process' end.

    :param line: to the supervisor
    :param server: started
    """

    def __init__(self, line: Line, server: Server) -> None:
        self._line = line
        self._gate = server.gate
        self._told = False
        self._free = True
        self._reconsider = server.leave_clients(self._has_slot)

    def _has_slot(self) -> bool:
        """Return whether another process has a slot; asked when this one is full."""
        if not self._told:
            self._told = True
            self._line.tell("full", True)
            self._gate.when_room(self._on_free_slot)
        return self._free

    def _on_free_slot(self) -> None:
        self._told = False
        self._line.tell("full", False)

    def changed(self, *, free: bool) -> None:
        """Take the supervisor's word."""
        self._free = free
        if not free:
            self._reconsider()


class FullProcesses:
    """The supervisor's end: the processes that are full."""

    def __init__(self) -> None:
        self._full: set[ServingProcess] = set()
        self._some_free = True

    def note(self, process: ServingProcess, *, full: bool) -> None:
        """Take the word of a process, or its end."""
        if full:
            self._full.add(process)
        else:
            self._full.discard(process)

    def tell(self, processes: Iterable[ServingProcess]) -> None:
        """Tell all *processes* whether one of them has a free slot, if that has changed."""
        some = any(process not in self._full for process in processes)
        if some != self._some_free:
            self._some_free = some
            for process in processes:
                process.tell("elsewhere", some)
