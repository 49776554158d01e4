"""Inherited sockets: bound by the process that started this one, and identified by names.

The name of a socket (``FileDescriptorName=`` in a socket unit, systemd.socket(5)) is its scheme:
``smtp``, ``smtps`` or ``lmtp``, each also with flags, as in an address. Any other name means SMTP:
without ``FileDescriptorName=`` the name is that of the socket unit, and other programs use
``unknown``.
"""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING

from smtpd_fork.errors import OperatingSystemError
from smtpd_fork.listeners.address import scheme_of_name
from smtpd_fork.listeners.bind import adopt, bind_all, listen_backlog, wanted_addresses
from smtpd_fork.listeners.listener import Listener, closed_on_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from smtpd_fork.config import Config

__all__ = ["inherited_listeners", "listeners_of_old_process", "listening_socket"]

_FAMILIES = {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX}


def inherited_listeners(passed: Iterable[tuple[int, str]], *, backlog: int) -> list[Listener]:
    """Return a listener for each inherited descriptor; after an error all of them are closed.

    :param passed: descriptors, each with its name
    :param backlog: for listen(2); not applied, as the sockets already listen
    :raises OperatingSystemError: a descriptor is not a socket, does not listen, or cannot listen
    :raises SettingError: a name has unknown flags
    """
    listeners: list[Listener] = []
    with closed_on_error(listeners):
        for descriptor, name in passed:
            sock = listening_socket(descriptor)
            listeners.append(adopt(sock, backlog=backlog, scheme=scheme_of_name(name)))
    return listeners


def listeners_of_old_process(
    handed_over: Iterable[tuple[int, str, str]], config: Config, warn: Callable[[str], object]
) -> tuple[list[Listener], list[Listener]]:
    """Return listeners for the sockets that the new process of an upgrade inherits.

    The old process bound them for its settings ``listen`` and ``port``. Addresses of *config* that
    have no inherited socket are bound; inherited sockets that *config* no longer names are returned
    separately. The old process owns the inherited sockets until
    :meth:`~smtpd_fork.listeners.listener.Listener.take_ownership`.

    :param handed_over: descriptors, each with the scheme and the address for which it was bound
    :param warn: as for :func:`~smtpd_fork.listeners.bind.bind_all`
    :returns: the listeners to use, and the listeners to close
    :raises SmtpdForkError: as :func:`~smtpd_fork.listeners.bind.open_listeners`; then all sockets
        are closed
    """
    backlog, addresses = config.backlog, wanted_addresses(config)
    known = {str(address): address for address in addresses}
    listeners: list[Listener] = []
    dropped: list[Listener] = []
    with closed_on_error(listeners), closed_on_error(dropped):
        for descriptor, scheme, name in handed_over:
            sock = listening_socket(descriptor)
            if name in known:
                sock.listen(listen_backlog(backlog))  # the setting may have changed
                sock.setblocking(False)
                listeners.append(Listener(known[name], sock, inherited=True))
            else:
                dropped.append(adopt(sock, backlog=backlog, scheme=scheme))
        found = {str(listener.address) for listener in listeners}
        missing = [address for address in addresses if str(address) not in found]
        mode = config.socket_mode
        listeners += bind_all(
            missing, backlog=backlog, socket_mode=mode, also_bound=addresses, warn=warn
        )
    order = [str(address) for address in addresses]
    listeners.sort(key=lambda listener: order.index(str(listener.address)))
    return listeners, dropped


def listening_socket(descriptor: int) -> socket.socket:
    """Return *descriptor* as a socket.

    :raises OperatingSystemError: it is not a listening socket
    """
    where = f"cannot listen on descriptor {descriptor}"
    try:
        kind = os.fstat(descriptor).st_mode
    except (OSError, OverflowError):
        raise OperatingSystemError(f"{where}: it is not open") from None
    if not stat.S_ISSOCK(kind):
        raise OperatingSystemError(f"{where}: it is not a socket")
    sock = socket.socket(fileno=descriptor)
    if sock.family not in _FAMILIES or sock.type != socket.SOCK_STREAM:
        reason = "that kind of socket cannot listen"
    elif not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        reason = "it does not listen (a connection, as with Accept=yes in a socket unit?)"
    else:
        return sock
    sock.close()
    raise OperatingSystemError(f"{where}: {reason}")
