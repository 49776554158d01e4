"""Holdings: what this process has besides its server, and leaves to the one that takes over."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smtpd_fork.daemon import HandedListener, HandedPidFile, Handover

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smtpd_fork.daemon import Invocation, Janitor, Notifier, PidFile, Successor
    from smtpd_fork.listeners import Listener
    from smtpd_fork.server import Server

__all__ = ["Holdings"]


@dataclass(slots=True)
class Holdings:
    """What is there by and by, in the course of a start.

    :ivar invocation: how the process was started
    :ivar under_init: pid 1 of a container looks after this process, and ends with it
    :ivar successor: the line to the process whose place this one takes, if it does
    :ivar notifier: to the service manager
    :ivar pid_file: open and locked
    :ivar control: the control socket
    :ivar metrics: where these are served
    :ivar janitor: removes what only root may
    :ivar left: listeners that another process left, and are not ours yet
    :ivar dropped: those of them that the settings do not name any more
    :ivar dropped_pid_file: the same
    :ivar warnings: logged once the start is sure: of one that fails, the fault is the one line
    """

    invocation: Invocation
    under_init: bool = False
    successor: Successor | None = None
    notifier: Notifier | None = None
    pid_file: PidFile | None = None
    control: Listener | None = None
    metrics: list[Listener] = field(default_factory=list)
    janitor: Janitor | None = None
    left: list[Listener] = field(default_factory=list)
    dropped: list[Listener] = field(default_factory=list)
    dropped_pid_file: PidFile | None = None
    warnings: list[str] = field(default_factory=list)

    def handover(
        self, server: Server, sockets: Mapping[str, socket.socket], stderr: int
    ) -> Handover:
        """Return what a new process inherits.

        :param sockets: those of the services
        :param stderr: what is to be its standard error
        """
        pid_file, janitor = self.pid_file, self.janitor
        return Handover(
            parent=os.getpid(),
            stderr=stderr,
            listeners=[
                HandedListener(
                    listener.sock.fileno(),
                    listener.address.scheme,
                    str(listener.address),
                    listener.inherited,
                )
                for listener in server.listeners
            ],
            pid_file=None
            if pid_file is None
            else HandedPidFile(pid_file.descriptor, str(pid_file.path)),
            janitor=None if janitor is None else janitor.descriptor,
            sockets={name: sock.fileno() for name, sock in sockets.items()},
        )

    def claim(self, name: str) -> socket.socket | None:
        """Return the socket that a service of the old process left by *name*, if one did.

        Whoever claims it has it, and closes it. What nobody has claimed when this process takes
        over is closed then.
        """
        if self.successor is None:
            return None
        descriptor = self.successor.handover.sockets.pop(name, None)
        return None if descriptor is None else socket.socket(fileno=descriptor)

    def let_go(self) -> None:
        """Remove nothing at the end: another process has it now."""
        for thing in (self.pid_file, self.janitor):
            if thing is not None:
                thing.let_go()

    def take_over(self) -> None:
        """Have what another process let go of; what nobody wants any more goes."""
        for listener in (*self.left, *self.dropped):
            listener.take_over()
        for thing in (self.pid_file, self.janitor, self.dropped_pid_file):
            if thing is not None:
                thing.take_over()
        for listener in self.dropped:
            listener.close()
        if self.dropped_pid_file is not None:
            self.dropped_pid_file.remove()
        self.left, self.dropped, self.dropped_pid_file = [], [], None
        while self.successor is not None and self.successor.handover.sockets:
            os.close(self.successor.handover.sockets.popitem()[1])
