"""Whether another process has a free connection slot.

``--when-full refuse`` and ``defer:SECONDS`` accept clients for which there is no slot. With several
processes, a process must do that only if no process has a free slot. So a full process notifies the
supervisor, and leaves clients in the backlog until the supervisor answers that all are full.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from smtpd_fork.server import Server
    from smtpd_fork.supervisor.channel import Channel
    from smtpd_fork.supervisor.other_supervisor import OtherSupervisor
    from smtpd_fork.supervisor.serving_process import ServingProcess

__all__ = ["FreeSlotElsewhere", "FullProcesses"]


class FreeSlotElsewhere:
    """In a process: whether another process has a free slot, while this one is full.

    :param channel: to the supervisor
    :param server: the started server
    """

    def __init__(self, channel: Channel, server: Server) -> None:
        self._channel = channel
        self._gate = server.gate
        self._full_reported = False
        self._free = True
        self._accept_clients = server.leave_clients(self._has_slot)

    def _has_slot(self) -> bool:
        """Return whether another process has a free slot; called while this one is full."""
        if not self._full_reported:
            self._full_reported = True
            self._free = True  # the last answer may be outdated; the supervisor answers again
            self._channel.notify("full", True)
            self._gate.when_room(self._on_free_slot)
        return self._free

    def _on_free_slot(self) -> None:
        self._full_reported = False
        self._channel.notify("full", False)

    def set_free(self, *, free: bool) -> None:
        """Apply a notification of the supervisor."""
        self._free = free
        if not free:
            self._accept_clients()


class FullProcesses:
    """In the supervisor: the processes that are full.

    Another supervisor is full if all its processes that accept clients are full.
    """

    def __init__(self) -> None:
        self._full: set[ServingProcess | OtherSupervisor] = set()
        self._some_free = self._own_free = True

    def set_full(self, member: ServingProcess | OtherSupervisor, *, full: bool) -> None:
        """Record whether a process or another supervisor is full."""
        if full:
            self._full.add(member)
        else:
            self._full.discard(member)

    def announce(
        self,
        processes: Collection[ServingProcess],
        accepting: Collection[ServingProcess],
        others: Collection[OtherSupervisor],
    ) -> None:
        """Notify all whether a process that accepts clients has a free slot, if that has changed.

        :param processes: of this supervisor
        :param accepting: those of them that accept clients
        :param others: the other supervisors
        """
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

    def add_supervisor(self, other: OtherSupervisor) -> None:
        """Add another supervisor, which counts as full until its first notification."""
        self._full.add(other)

    def notify_supervisor(self, other: OtherSupervisor) -> None:
        """Send the first notification to another supervisor."""
        other.notify("full", not self._own_free)
