"""Elsewhere: whether another process has a free slot, while this one has none.

``--when-full refuse`` and ``defer:SECONDS`` accept clients for whom there is no slot. With several
processes that has to wait until there is none anywhere: a full process says so, and leaves clients
in the backlog until the supervisor says that all are full.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from smtpd_fork.server import Server
    from smtpd_fork.supervisor.channel import Channel
    from smtpd_fork.supervisor.other_supervisor import OtherSupervisor
    from smtpd_fork.supervisor.serving_process import ServingProcess

__all__ = ["Elsewhere", "FullProcesses"]


class Elsewhere:
    """A process' end.

    :param line: to the supervisor
    :param server: started
    """

    def __init__(self, line: Channel, server: Server) -> None:
        self._channel = line
        self._gate = server.gate
        self._told = False
        self._free = True
        self._reconsider = server.leave_clients(self._has_slot)

    def _has_slot(self) -> bool:
        """Return whether another process has a slot; asked when this one is full."""
        if not self._told:
            self._told = True
            self._free = True  # what the supervisor said before may no longer be so; it answers
            self._channel.notify("full", True)
            self._gate.when_room(self._on_free_slot)
        return self._free

    def _on_free_slot(self) -> None:
        self._told = False
        self._channel.notify("full", False)

    def changed(self, *, free: bool) -> None:
        """Take the supervisor's word."""
        self._free = free
        if not free:
            self._reconsider()


class FullProcesses:
    """The supervisor's end: the processes that are full, and other supervisors all of whose are."""

    def __init__(self) -> None:
        self._full: set[ServingProcess | OtherSupervisor] = set()
        self._some_free = self._own_free = True

    def note(self, who: ServingProcess | OtherSupervisor, *, full: bool) -> None:
        """Take the word of a process, or its end."""
        if full:
            self._full.add(who)
        else:
            self._full.discard(who)

    def tell(
        self,
        processes: Collection[ServingProcess],
        accepting: Collection[ServingProcess],
        others: Collection[OtherSupervisor],
    ) -> None:
        """Tell all whether a process has a free slot that accepts, if that has changed."""
        own = any(process not in self._full for process in accepting)
        if own != self._own_free:
            self._own_free = own
            for other in others:
                other.notify("full", not own)
        some = own or any(other not in self._full for other in others)
        if some != self._some_free:
            self._some_free = some
            for process in processes:
                process.notify("elsewhere", some)

    def introduce(self, other: OtherSupervisor) -> None:
        """Tell another supervisor how it is, which is full until it says something else."""
        self._full.add(other)
        other.notify("full", not self._own_free)
