"""bind(2) and listen(2), with an explanation for each error.

A host name may resolve to an address that no interface of this host has, or of a family that the
host does not support: ``localhost`` often resolves to ``::1`` as well, which the loopback of a
container may not have. Such an address is skipped with a warning if another one of the name can be
bound. A numeric address is never skipped.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smtpd_fork.config import SettingError
from smtpd_fork.errors import (
    CannotCreateError,
    ConfigError,
    NotPermittedError,
    OperatingSystemError,
    SmtpdForkError,
)
from smtpd_fork.listeners.address import ANY, Address, expand_ports, parse_address
from smtpd_fork.listeners.listener import Listener, closed_on_error
from smtpd_fork.listeners.unix import bind_unix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smtpd_fork.config import Config

    Warn = Callable[[str], object]

__all__ = [
    "adopt",
    "bind_all",
    "listen_backlog",
    "open_listeners",
    "reopen_listeners",
    "try_to_bind",
    "wanted_addresses",
]

log = logging.getLogger("smtpd_fork.listeners")

_SKIPPED = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
"""Errors of bind(2) and socket(2) for which an address of a host name is skipped."""

_MEANING: dict[int, tuple[type[SmtpdForkError], str]] = {
    errno.EACCES: (NotPermittedError, "permission denied; ports below 1024 need privileges"),
    errno.EPERM: (NotPermittedError, "not permitted"),
    errno.EADDRINUSE: (OperatingSystemError, "the address is in use by another program"),
    errno.EADDRNOTAVAIL: (OperatingSystemError, "no interface of this host has that address"),
    errno.EAFNOSUPPORT: (OperatingSystemError, "this host does not support that address family"),
    errno.EDESTADDRREQ: (OperatingSystemError, "the socket is not bound to an address"),
    errno.EINVAL: (OperatingSystemError, "the socket is connected or shut down already"),
    errno.ENOTSOCK: (OperatingSystemError, "the descriptor is not a socket"),
    errno.EOPNOTSUPP: (OperatingSystemError, "that kind of socket cannot listen"),
    errno.EBADF: (OperatingSystemError, "the descriptor is not open"),
    errno.ENOBUFS: (OperatingSystemError, "the system is short of memory for sockets"),
    errno.ENOMEM: (OperatingSystemError, "the system is short of memory for sockets"),
    errno.EMFILE: (OperatingSystemError, "too many open files in this process"),
    errno.ENFILE: (OperatingSystemError, "too many open files in the system"),
    errno.ENODEV: (OperatingSystemError, "there is no such interface"),
}
_UNIX_MEANING: dict[int, tuple[type[SmtpdForkError], str]] = {
    **_MEANING,
    errno.EACCES: (CannotCreateError, "permission denied"),
    errno.ENOENT: (CannotCreateError, "its directory does not exist"),
    errno.ENOTDIR: (CannotCreateError, "part of the path is not a directory"),
    errno.EROFS: (CannotCreateError, "the file system is read-only"),
    errno.EEXIST: (CannotCreateError, "the path exists and is not a socket"),
    errno.EADDRINUSE: (OperatingSystemError, "another program answers there"),
}


def open_listeners(config: Config, warn: Warn = log.warning) -> list[Listener]:
    """Bind all addresses of *config*.

    :param warn: as for :func:`bind_all`
    :raises SettingError: an address is invalid
    :raises SmtpdForkError: as :func:`bind_all`
    """
    return bind_all(
        wanted_addresses(config),
        backlog=config.backlog,
        socket_mode=config.socket_mode,
        warn=warn,
    )


def wanted_addresses(config: Config) -> list[Address]:
    """Return the addresses of the settings ``listen`` and ``port``; all interfaces by default.

    :raises SettingError: an address is invalid, or overlaps with another
    """
    addresses = expand_ports([parse_address(text) for text in config.listen or (ANY,)], config.port)
    for one, other in combinations(addresses, 2):
        if one.overlaps(other):
            raise SettingError("listen", str(other), f"overlaps with {one}: give one of them")
    return addresses


def reopen_listeners(current: Sequence[Listener], config: Config) -> list[Listener]:
    """Bind the addresses of *config* that no listener of *current* has.

    :returns: a listener for each address of *config*, old and new ones, in no particular order
    :raises SmtpdForkError: an address cannot be bound; then no new one stays bound
    """
    wanted = wanted_addresses(config)
    kept = [listener for listener in current if listener.address in wanted]
    bound = [listener.address for listener in kept]
    missing = [address for address in wanted if address not in bound]
    backlog, mode = config.backlog, config.socket_mode
    opened = bind_all(missing, backlog=backlog, socket_mode=mode, also_bound=bound)
    for listener in kept:
        with suppress(OSError):
            listener.sock.listen(listen_backlog(backlog))
    return [*kept, *opened]


def bind_all(
    addresses: Sequence[Address],
    *,
    backlog: int,
    socket_mode: int,
    also_bound: Sequence[Address] = (),
    warn: Warn = log.warning,
) -> list[Listener]:
    """Bind and listen on all addresses; after an error none of them stays bound.

    :param addresses: each with a port, or a path
    :param also_bound: other addresses that are or will be bound
    :param backlog: for listen(2); see :func:`listen_backlog`
    :param socket_mode: file mode of unix sockets
    :param warn: called with a text for each address of a host name that is skipped
    :raises ConfigError: a host cannot be resolved
    :raises NotPermittedError: a port needs privileges
    :raises CannotCreateError: the path of a unix socket cannot be created
    :raises OperatingSystemError: any other error of the system
    """
    listeners: list[Listener] = []
    with closed_on_error(listeners):
        for address in addresses:
            others = [*addresses, *also_bound]
            for sock in _bind(address, others, socket_mode, listen_backlog(backlog), warn):
                sock.setblocking(False)
                listeners.append(Listener(address, sock))
    return listeners


def try_to_bind(addresses: Sequence[Address], warn: Warn = log.warning) -> None:
    """Bind each address without listening, and close it, to check that it can be bound.

    :param warn: as for :func:`bind_all`
    :raises SmtpdForkError: as :func:`bind_all` does
    """
    for address in addresses:
        for sock in _bind(address, addresses, 0o600, None, warn):
            Listener(address, sock).close()


def adopt(sock: socket.socket, *, backlog: int, scheme: str = "smtp") -> Listener:
    """Listen on a socket that was bound by another process or by the caller.

    :param scheme: protocol and flags, as in an address
    :raises OperatingSystemError: it cannot listen: not bound, connected, shut down, not a socket
    """
    try:
        address = _address_of(sock, scheme)
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.listen(listen_backlog(backlog))
        sock.setblocking(False)
        return Listener(address, sock, inherited=True)
    except OSError as error:
        raise _explain_error(Address(host=f"descriptor {sock.fileno()}"), error) from None


def _address_of(sock: socket.socket, scheme: str) -> Address:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        # An abstract name begins with NUL, which is usually written as @: unix(7).
        return Address(scheme, path=Path(os.fsdecode(name).replace("\0", "@")))
    return Address(scheme, host=name[0], port=name[1])


def listen_backlog(backlog: int) -> int:
    """Limit *backlog* to the range that listen(2) accepts."""
    return max(0, min(backlog, 2**31 - 1))


def _bind(
    address: Address, others: Sequence[Address], mode: int, backlog: int | None, warn: Warn
) -> list[socket.socket]:
    """Return a socket for each IP address of *address*, or one for its path.

    :param backlog: for listen(2); None: bind only
    """
    try:
        if address.path is not None:
            return [bind_unix(address.path, mode, backlog)]
        if address.host == ANY:
            sockets = [_bind_any(address.port or 0)]
        else:
            sockets = _bind_host(address, others, warn)
        if backlog is not None:
            with closed_on_error(sockets):
                for sock in sockets:
                    sock.listen(backlog)
    except OSError as error:
        raise _explain_error(address, error) from None
    return sockets


def _bind_any(port: int) -> socket.socket:
    """Return one socket for IPv4 and IPv6, or for IPv4 only if the host has no IPv6."""
    try:
        return _bind_one(socket.AF_INET6, ("::", port), v6only=False)
    except OSError as error:
        if error.errno not in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
            raise
    return _bind_one(socket.AF_INET, ("0.0.0.0", port))  # noqa: S104 - it was asked for


def _bind_host(address: Address, others: Sequence[Address], warn: Warn) -> list[socket.socket]:
    # With 0.0.0.0 on the same port, [::] is for IPv6 only; alone it includes IPv4, as in qpsmtpd.
    v6only = any(
        other.host == "0.0.0.0" and other.port == address.port  # noqa: S104 - compared only
        for other in others
    )
    sockets: list[socket.socket] = []
    skipped: list[tuple[tuple[Any, ...], OSError]] = []
    with closed_on_error(sockets):
        for family, target in _resolve(address):
            try:
                sockets.append(_bind_one(family, target, v6only=v6only))
            except OSError as error:
                if error.errno not in _SKIPPED:
                    raise
                skipped.append((target, error))
    if not sockets and len(skipped) == 1:
        raise skipped[0][1]
    reasons = [f"{target[0]}: {_MEANING[error.errno or 0][1]}" for target, error in skipped]
    if not sockets:
        raise OperatingSystemError(f"cannot listen on {address}, at {'; '.join(reasons)}")
    for reason in reasons:
        warn(f"{address.host} has an address that is not listened on, {reason}")
    return sockets


def _resolve(address: Address) -> list[tuple[int, tuple[Any, ...]]]:
    """Resolve a host to its families and socket addresses, without duplicates."""
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else "not a host name"
        raise ConfigError(f"cannot listen on {address}: {reason}") from None
    return list(dict.fromkeys((family, target) for family, _, _, _, target in found))


def _bind_one(family: int, target: tuple[Any, ...], *, v6only: bool = False) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    with closed_on_error([sock]):
        # Without it a restart fails while old connections are in TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        sock.bind(target)
    return sock


def _explain_error(address: Address, error: OSError) -> SmtpdForkError:
    """Convert an error of bind(2) or listen(2) into a :class:`SmtpdForkError`."""
    meanings = _UNIX_MEANING if address.path is not None else _MEANING
    number = error.errno or 0
    kind, meaning = meanings.get(number, (OperatingSystemError, os.strerror(number)))
    return kind(f"cannot listen on {address}: {meaning}")
