"""Inherited sockets: bound by the process that started this one, told apart by their names.

The name that a socket has (``FileDescriptorName=`` in a socket unit, systemd.socket(5)) says what
is spoken there: ``smtp``, ``smtps``, ``lmtp``, each also with flags, as in front of an address. Any
other name is SMTP: systemd calls a socket without one after its unit, and others call it
``unknown``.
"""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING

from smtpd_fork.errors import OperatingSystemError
from smtpd_fork.listeners.address import scheme_called
from smtpd_fork.listeners.bind import adopt, bind_all, listen_backlog, wanted_addresses
from smtpd_fork.listeners.listener import Listener, closed_on_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from smtpd_fork.config import Config

__all__ = ["handed_listeners", "inherited_listeners", "listening_socket"]

_FAMILIES = {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX}


def inherited_listeners(passed: Iterable[tuple[int, str]], *, backlog: int) -> list[Listener]:
    """Return a listener for each descriptor that was passed: for all of them, or for none.

    :param passed: descriptors, each with its name
    :param backlog: of listen(2); theirs stays what it is, as they listen already
    :raises OperatingSystemError: one is no socket, does not listen, or is of a kind that cannot
    :raises SettingError: a name has flags that are none
    """
    listeners: list[Listener] = []
    with closed_on_error(listeners):
        for descriptor, name in passed:
            sock = listening_socket(descriptor)
            listeners.append(adopt(sock, backlog=backlog, scheme=scheme_called(name)))
    return listeners


def handed_listeners(
    handed: Iterable[tuple[int, str, str]], config: Config, warn: Callable[[str], object]
) -> tuple[list[Listener], list[Listener]]:
    """Go on with the sockets that the old process of an upgrade bound for ``listen`` and ``port``.

    What *config* names and was not handed over is bound; what was handed over and it no longer
    names is returned apart. Those that were handed over are still the old process's: see
    :meth:`~smtpd_fork.listeners.listener.Listener.take_over`.

    :param handed: descriptors, each with the scheme and the address that it was bound for
    :param warn: as of :func:`~smtpd_fork.listeners.bind.bind_all`
    :returns: what to listen on, and what to close
    :raises SmtpdForkError: as :func:`~smtpd_fork.listeners.bind.open_listeners`; nothing stays open
    """
    backlog, addresses = config.backlog, wanted_addresses(config)
    known = {str(address): address for address in addresses}
    listeners: list[Listener] = []
    dropped: list[Listener] = []
    with closed_on_error(listeners), closed_on_error(dropped):
        for descriptor, scheme, name in handed:
            sock = listening_socket(descriptor)
            if name in known:
                sock.listen(listen_backlog(backlog))  # it may be another by now
                sock.setblocking(False)
                listeners.append(Listener(known[name], sock, inherited=True))
            else:
                dropped.append(adopt(sock, backlog=backlog, scheme=scheme))
        found = {str(listener.address) for listener in listeners}
        missing = [address for address in addresses if str(address) not in found]
        mode = config.socket_mode
        listeners += bind_all(
            missing, backlog=backlog, socket_mode=mode, beside=addresses, warn=warn
        )
    order = [str(address) for address in addresses]
    listeners.sort(key=lambda listener: order.index(str(listener.address)))
    return listeners, dropped


def listening_socket(descriptor: int) -> socket.socket:
    """Return the socket that *descriptor* is.

    :raises OperatingSystemError: it is none that listens
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
        reason = "it does not listen (a connection, as of Accept=yes in a socket unit?)"
    else:
        return sock
    sock.close()
    raise OperatingSystemError(f"{where}: {reason}")
