"""Inherited sockets: bound by whoever started this process, and told apart by their names.

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
from smtpd_fork.listeners.listener import Listener

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["inherited_listeners", "listeners_left", "listening_socket"]

_FAMILIES = {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX}


def inherited_listeners(passed: Iterable[tuple[int, str]], *, backlog: int) -> list[Listener]:
    """Return a listener for each descriptor that was passed: for all of them, or for none.

    :param passed: descriptors, each with its name
    :param backlog: of listen(2); theirs stays what it is, as they listen already
    :raises OperatingSystemError: one is no socket, does not listen, or is of a kind that cannot
    :raises SettingError: a name has flags that are none
    """
    listeners: list[Listener] = []
    try:
        for descriptor, name in passed:
            sock = listening_socket(descriptor)
            scheme = scheme_called(name)
            listeners.append(adopt(sock, backlog=backlog, scheme=scheme))
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def listeners_left(
    left: Iterable[tuple[int, str, str]],
    listen: Sequence[str],
    ports: Sequence[int],
    *,
    backlog: int,
    socket_mode: int,
    warn: Callable[[str], object],
) -> tuple[list[Listener], list[Listener]]:
    """Go on with the sockets that another process bound for the settings *listen* and *port*.

    What the settings name and was not left is bound; what was left and they no longer name is
    returned apart. Those that were left are the other process's still: see
    :meth:`~smtpd_fork.listeners.listener.Listener.take_over`.

    :param left: descriptors, each with the scheme and the address that it was bound for
    :param warn: as of :func:`~smtpd_fork.listeners.bind.bind_all`
    :returns: what to listen on, and what to close
    :raises SmtpdForkError: as :func:`~smtpd_fork.listeners.bind.open_listeners`; nothing stays open
    """
    addresses = wanted_addresses(listen, ports)
    known = {str(address): address for address in addresses}
    found: dict[str, list[Listener]] = {}
    dropped: list[Listener] = []
    listeners: list[Listener] = []
    try:
        for descriptor, scheme, name in left:
            sock = listening_socket(descriptor)
            if name in known:
                sock.listen(listen_backlog(backlog))  # it may be another by now
                found.setdefault(name, []).append(Listener(known[name], sock, inherited=True))
            else:
                dropped.append(adopt(sock, backlog=backlog, scheme=scheme))
        for address in addresses:
            # Of two that are the same (port 0 twice) the first gets all.
            if str(address) in found:
                listeners += found[str(address)]
                found[str(address)] = []
            else:
                listeners += bind_all(
                    [address],
                    backlog=backlog,
                    socket_mode=socket_mode,
                    beside=addresses,
                    warn=warn,
                )
    except BaseException:
        for listener in [*listeners, *dropped, *(one for some in found.values() for one in some)]:
            listener.close()
        raise
    for listener in listeners:
        listener.sock.setblocking(False)
    return listeners, dropped


def listening_socket(descriptor: int) -> socket.socket:
    """Return the socket that *descriptor* is, once it is seen that clients may come in there.

    :raises OperatingSystemError: they may not
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
