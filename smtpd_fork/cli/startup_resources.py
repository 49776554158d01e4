"""StartupResources: the sockets, files and cleanup process of a daemon, besides its server.

Sockets come from a service manager (socket activation), from the old process of an upgrade, or from
bind(2). The pid file comes from the old process, or from open(2).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from smtpd_fork.cli.metrics_listener import metrics_address, open_metrics
from smtpd_fork.config import PORT, DaemonConfig, SettingError
from smtpd_fork.daemon import (
    Account,
    CleanupProcess,
    Handover,
    HandoverListener,
    Invocation,
    Notifier,
    PassedSocket,
    PidFile,
    Successor,
    Supervised,
)
from smtpd_fork.errors import error_origin
from smtpd_fork.listeners import (
    Address,
    Listener,
    inherited_listeners,
    listeners_of_old_process,
    open_listeners,
    wanted_addresses,
)
from smtpd_fork.observe.control import open_control
from smtpd_fork.observe.service import metrics_name
from smtpd_fork.supervisor.other_supervisor import PROTOCOL

if TYPE_CHECKING:
    from smtpd_fork.observe.logs import LogQueue
    from smtpd_fork.server import Server
    from smtpd_fork.supervisor.processes import Processes

__all__ = ["StartupResources", "check_overlaps"]

_NO_HANDOVER = Handover(parent=0, stderr=2)


@dataclass(slots=True)
class StartupResources:
    """The resources that a start acquires, one after another; :attr:`at_exit` releases them.

    :ivar invocation: how the process was started
    :ivar under_init: whether process 1 of a container is a parent process that ends with this one
    :ivar successor: the connection to the old process of an upgrade, if there is one
    :ivar notifier: sends notifications to systemd, if it expects them
    :ivar log_queue: writes the log; None if nothing is logged
    :ivar pid_file: the pid file, if there is one
    :ivar listeners: listeners for SMTP
    :ivar control: listener of the control socket, if there is one
    :ivar metrics: listeners for HTTP
    :ivar cleanup_process: removes files at the end that this user cannot remove
    :ivar inherited: listeners that still belong to the old process
    :ivar dropped: inherited listeners that are no longer in the settings
    :ivar dropped_pid_file: the inherited pid file, if it is no longer in the settings
    :ivar warnings: logged once the start has succeeded; a start that fails prints only its error
    """

    invocation: Invocation
    under_init: bool = False
    successor: Successor | None = None
    notifier: Notifier | None = None
    log_queue: LogQueue | None = None
    pid_file: PidFile | None = None
    listeners: list[Listener] = field(default_factory=list)
    control: Listener | None = None
    metrics: list[Listener] = field(default_factory=list)
    cleanup_process: CleanupProcess | None = None
    inherited: list[Listener] = field(default_factory=list)
    dropped: list[Listener] = field(default_factory=list)
    dropped_pid_file: PidFile | None = None
    warnings: list[str] = field(default_factory=list)
    at_exit: ExitStack = field(default_factory=ExitStack)

    @property
    def supervised(self) -> Supervised | None:
        """The position under a supervisor; None without a supervisor."""
        return self._handover.supervised

    # -- acquired at the start -------------------------------------------------------------------

    @property
    def _handover(self) -> Handover:
        """The resources that the old process handed over; empty without one."""
        return _NO_HANDOVER if self.successor is None else self.successor.handover

    def open_sockets_and_files(self, config: DaemonConfig, passed: Sequence[PassedSocket]) -> None:
        """Open the listeners, the control socket and the pid file, unless they were handed over.

        :param passed: sockets of a service manager
        :raises SmtpdForkError: one of them cannot be opened
        """
        self._open_listeners(config, passed)
        if self.supervised is not None:
            return  # the other resources belong to the supervisor
        self._open_control(config.control)
        self._open_metrics(config)
        self._open_pid_file(config.pid_file)

    def _open_listeners(self, config: DaemonConfig, passed: Sequence[PassedSocket]) -> None:
        """Listen on passed sockets, or on those that were handed over, or on those of *config*."""
        handed = self._handover.listeners
        activated = [(one.descriptor, one.scheme) for one in handed if one.inherited]
        if self.supervised is not None:
            self.listeners = inherited_listeners(activated, backlog=config.backlog)
        elif activated or passed:
            _check_only_inherited(config)
            self.listeners = inherited_listeners([*activated, *passed], backlog=config.backlog)
        else:
            self._bind(config, handed)
        self.at_exit.callback(_close_all, [*self.listeners, *self.dropped])

    @error_origin("listen", "port")
    def _bind(self, config: DaemonConfig, handed: Sequence[HandoverListener]) -> None:
        warn = self.warnings.append
        check_overlaps(config)
        if handed:
            bound = [(one.descriptor, one.scheme, one.address) for one in handed]
            self.listeners, self.dropped = listeners_of_old_process(bound, config, warn)
            self.inherited = [listener for listener in self.listeners if listener.inherited]
        else:
            self.listeners = open_listeners(config, warn)

    @error_origin("control")
    def _open_control(self, path: str | None) -> None:
        """Listen on the control socket that was handed over if it is at *path*, or on a new one."""
        handed = self.claim("control")
        if handed is not None:
            bound_to = Path(handed.getsockname())
            listener = Listener(Address(path=bound_to), handed, inherited=True)
            if path is not None and bound_to == Path(path).absolute():
                self.inherited.append(listener)
                self.control = listener
            else:
                self.dropped.append(listener)
        if self.control is None and path is not None:
            self.control = open_control(path)
        if self.control is not None:
            self.at_exit.callback(self.control.close)

    @error_origin("metrics")
    def _open_metrics(self, config: DaemonConfig) -> None:
        """Listen for HTTP on sockets that were handed over for this address, or on new ones."""
        if config.metrics is None:
            return
        address = metrics_address(config.metrics)
        while (handed := self.claim(metrics_name(address, len(self.metrics)))) is not None:
            self.metrics.append(Listener(address, handed, inherited=True))
        self.inherited.extend(self.metrics)
        self.metrics = self.metrics or open_metrics(config, self.warnings.append)
        self.at_exit.callback(_close_all, self.metrics)

    @error_origin("pid_file")
    def _open_pid_file(self, path: str | None) -> None:
        """Use the pid file that was handed over, if it is at *path*, or open a new one."""
        if (handed := self._handover.pid_file) is not None:
            inherited = PidFile(Path(handed[1]), handed[0], foreign=True)
            if path is not None and inherited.path == Path(path).absolute() and inherited.is_ours():
                self.pid_file = inherited
            else:
                self.dropped_pid_file = inherited
        if self.pid_file is None and path is not None:
            self.pid_file = PidFile.acquire(path)
        if self.pid_file is not None:
            self.at_exit.callback(self.pid_file.remove)

    def start_cleanup_process(self, account: Account | None) -> None:
        """Start or inherit the process that removes files which *account* cannot remove."""
        if self._handover.cleanup_process is not None:
            self.cleanup_process = CleanupProcess(
                socket.socket(fileno=self._handover.cleanup_process), foreign=True
            )
        elif account is not None and os.geteuid() == 0:
            self.cleanup_process = self._start_cleanup_process(account)
        if self.cleanup_process is not None:
            self.at_exit.callback(self.cleanup_process.finish)

    def _start_cleanup_process(self, account: Account) -> CleanupProcess:
        """Make *account* the owner of unix sockets; start the process that removes files later."""
        listeners = [*self.listeners, *self.metrics]
        if self.control is not None:
            listeners.append(self.control)
        for listener in listeners:
            if listener.path is not None and not listener.inherited:
                os.chown(listener.path, account.uid, account.gid, follow_symlinks=False)
        removals = [listener.remove for listener in listeners]
        if self.pid_file is None:
            return CleanupProcess.start(removals)
        return CleanupProcess.start(
            [*removals, self.pid_file.remove], keep=self.pid_file.descriptor
        )

    # -- handed over in an upgrade ---------------------------------------------------------------

    def handover(
        self,
        server: Server | Processes,
        sockets: Mapping[str, socket.socket],
        stderr: int,
        denials: int,
        supervisor: socket.socket | None,
    ) -> Handover:
        """Return the resources that a new process inherits.

        :param sockets: the sockets of the services
        :param stderr: the descriptor for the standard error of the new process
        :param denials: the descriptor of shared memory with the denied networks
        :param supervisor: the connection to this supervisor, if this process is one
        """
        pid_file, cleanup_process = self.pid_file, self.cleanup_process
        return Handover(
            parent=os.getpid(),
            stderr=stderr,
            listeners=[_handed_over(listener) for listener in server.listeners],
            pid_file=None if pid_file is None else (pid_file.descriptor, str(pid_file.path)),
            cleanup_process=None if cleanup_process is None else cleanup_process.descriptor,
            denials=denials,
            sockets={name: sock.fileno() for name, sock in sockets.items()},
            supervisor=None if supervisor is None else (supervisor.fileno(), PROTOCOL),
        )

    def old_supervisor(self) -> socket.socket | None:
        """Return the connection to the old supervisor, or None if its protocol differs."""
        if self._handover.supervisor is None:
            return None
        descriptor, protocol = self._handover.supervisor
        line = socket.socket(fileno=descriptor)
        if protocol == PROTOCOL:
            return line
        line.close()
        return None

    def claim(self, name: str) -> socket.socket | None:
        """Return the socket *name* of a service of the old process, or None if there is none.

        The caller owns the socket. Sockets that no service has claimed are closed when the upgrade
        is complete.
        """
        descriptor = self._handover.sockets.pop(name, None)
        return None if descriptor is None else socket.socket(fileno=descriptor)

    def leave_files(self) -> None:
        """Leave files to the new process: this process does not remove them at its end."""
        for resource in (self.pid_file, self.cleanup_process):
            if resource is not None:
                resource.foreign = True

    def close_sockets(self) -> None:
        """Close all sockets, as the old process continues to use them."""
        control = [] if self.control is None else [self.control]
        _close_all([*self.listeners, *self.dropped, *self.metrics, *control])

    def own_inherited(self) -> None:
        """Become the owner of inherited resources; close those that the settings do not name."""
        for listener in (*self.inherited, *self.dropped):
            listener.take_ownership()
        for resource in (self.pid_file, self.cleanup_process, self.dropped_pid_file):
            if resource is not None:
                resource.foreign = False
        for listener in self.dropped:
            listener.close()
        if self.dropped_pid_file is not None:
            self.dropped_pid_file.remove()
        self.inherited, self.dropped, self.dropped_pid_file = [], [], None
        while self._handover.sockets:
            os.close(self._handover.sockets.popitem()[1])


def check_overlaps(config: DaemonConfig) -> None:
    """Check that the addresses of the settings do not overlap.

    The error of bind(2) would point to another program.

    :raises SettingError: two addresses overlap
    """
    addresses = wanted_addresses(config)
    for setting in ("control", "metrics"):
        if (text := getattr(config, setting)) is None:
            continue
        path = Path(text).absolute()
        address = metrics_address(text) if setting == "metrics" else Address(path=path)
        for other in addresses:
            if address.overlaps(other):
                raise SettingError(setting, text, f"overlaps with {other}: name another address")
        addresses.append(address)


def _check_only_inherited(config: DaemonConfig) -> None:
    """Check that the settings name no addresses if sockets are inherited.

    Otherwise either would be ignored, or an address would be served that the socket unit does not
    show.

    :raises SettingError: the settings name an address
    """
    reason = "the sockets are inherited (LISTEN_FDS); name addresses in the socket unit or here"
    if config.listen:
        raise SettingError("listen", config.listen[0], reason)
    if config.port != (PORT,):
        raise SettingError("port", config.port[0], reason)


def _handed_over(listener: Listener) -> HandoverListener:
    address, descriptor = listener.address, listener.sock.fileno()
    return HandoverListener(descriptor, address.scheme, str(address), listener.inherited)


def _close_all(listeners: Sequence[Listener]) -> None:
    for listener in listeners:
        listener.close()
