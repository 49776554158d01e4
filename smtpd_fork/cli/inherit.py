"""Inherit: what a start finds there already, and what it has to make.

Sockets come from a service manager (socket activation), from the process whose place this one
takes, or from bind(2); a pid-file from that process, or from open(2).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from smtpd_fork.cli.metrics_listener import metrics_address, open_metrics
from smtpd_fork.config import PORT, SettingError
from smtpd_fork.daemon import PidFile
from smtpd_fork.errors import error_origin
from smtpd_fork.listeners import (
    Address,
    Listener,
    inherited_listeners,
    listeners_left,
    open_listeners,
)
from smtpd_fork.observe.control import open_control
from smtpd_fork.observe.service import metrics_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_fork.cli.holdings import Holdings
    from smtpd_fork.config import DaemonConfig
    from smtpd_fork.daemon import HandedListener, PassedSocket

__all__ = ["control_of", "listeners_of", "metrics_of", "pid_file_of"]


def listeners_of(
    config: DaemonConfig, holdings: Holdings, passed: Sequence[PassedSocket]
) -> list[Listener]:
    """Return what to listen on: what was passed, else what was left, else what the settings name.

    :param passed: by a service manager
    :raises SmtpdForkError: something of it cannot be had
    """
    left = [] if holdings.successor is None else holdings.successor.handover.listeners
    activated = [(one.descriptor, one.scheme) for one in left if one.inherited]
    if activated or passed:
        _check_named_nowhere_else(config)
        return inherited_listeners([*activated, *passed], backlog=config.backlog)
    with error_origin("listen", "port"):
        if left:
            return _go_on(config, holdings, left)
        return open_listeners(
            config.listen,
            config.port,
            backlog=config.backlog,
            socket_mode=config.socket_mode,
            warn=holdings.warnings.append,
        )


def _check_named_nowhere_else(config: DaemonConfig) -> None:
    """See that the settings name no address besides.

    Either would be a surprise: an address that was named and is not served, or one that is served
    and that the socket unit does not show. So it is said at once.

    :raises SettingError: they do
    """
    reason = "sockets were inherited (LISTEN_FDS), and take its place; name addresses there or here"
    if config.listen:
        raise SettingError("listen", config.listen[0], reason)
    if config.port != (PORT,):
        raise SettingError("port", config.port[0], reason)


def _go_on(
    config: DaemonConfig, holdings: Holdings, left: Sequence[HandedListener]
) -> list[Listener]:
    listeners, holdings.dropped = listeners_left(
        [(one.descriptor, one.scheme, one.address) for one in left],
        config.listen,
        config.port,
        backlog=config.backlog,
        socket_mode=config.socket_mode,
        warn=holdings.warnings.append,
    )
    holdings.left = [listener for listener in listeners if listener.inherited]
    return listeners


def pid_file_of(path: str | None, holdings: Holdings) -> PidFile | None:
    """Return the pid-file: the one that was left, if it is at *path*, else a new one.

    :returns: None if *path* is

    :raises CannotCreateError: it cannot be written, or a running process holds it
    """
    left = None if holdings.successor is None else holdings.successor.handover.pid_file
    if left is not None:
        inherited = PidFile.inherit(left.path, left.descriptor)
        if path is not None and inherited.path == Path(path).absolute() and inherited.is_ours():
            return inherited
        holdings.dropped_pid_file = inherited
    return None if path is None else PidFile.acquire(path)


def control_of(path: str | None, holdings: Holdings) -> Listener | None:
    """Return the control socket: the one that was left, if it is at *path*, else a new one.

    :returns: None if *path* is
    :raises SmtpdForkError: it cannot be had
    """
    left = holdings.claim("control")
    if left is not None:
        place = Path(left.getsockname())
        listener = Listener(Address(path=place), left, inherited=True)
        if path is not None and place == Path(path).absolute():
            holdings.left.append(listener)
            return listener
        holdings.dropped.append(listener)
    return None if path is None else open_control(path)


def metrics_of(config: DaemonConfig, holdings: Holdings) -> list[Listener]:
    """Return where metrics are served: what was left for the same address, else what is opened.

    :returns: empty if it is nowhere
    :raises SmtpdForkError: it cannot be had
    """
    if config.metrics is None:
        return []
    address = metrics_address(config.metrics)
    found: list[Listener] = []
    while (left := holdings.claim(metrics_name(address, len(found)))) is not None:
        found.append(Listener(address, left, inherited=True))
    holdings.left.extend(found)
    return found or open_metrics(config, holdings.warnings.append)
