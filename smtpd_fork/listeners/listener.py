"""Listener: a listening socket, and the configured address for which it was bound."""

from __future__ import annotations

import socket
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from smtpd_fork.peer_address import describe
from smtpd_fork.safe_open import exclusively

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from smtpd_fork.listeners.address import Address

__all__ = ["Listener", "closed_on_error"]


class AcceptedSocket(socket.socket):
    """A client's socket with less overhead than :class:`socket.socket`.

    That class looks up an enum each time that the event loop reads ``family`` or ``type``, and is
    slower than accept(2) itself.
    """

    __slots__ = ()

    family = socket.SocketType.family  # type: ignore[assignment]  # an int, which enums equal
    type = socket.SocketType.type  # type: ignore[assignment]  # as above
    detach = socket.SocketType.detach


class Listener:
    """A listening socket, and the configured address for which it was bound.

    :ivar address: the configured address
    :ivar tls: whether connections use implicit TLS
    :ivar proxy: whether each connection begins with a PROXY header
    :ivar sock: the socket; non-blocking, listening
    :param inherited: whether another process bound it, so that this one must not remove its path
    :ivar bound: the result of getsockname(2): ``(host, port, ...)``, or the path of a unix socket
    """

    def __init__(self, address: Address, sock: socket.socket, *, inherited: bool = False) -> None:
        self.address = address
        self.tls = address.tls
        self.proxy = address.proxy
        self.inherited = inherited
        self.sock = sock
        self.bound: Any = sock.getsockname()
        kind = (int(sock.family), int(sock.type), sock.proto)
        self._accepted = partial(AcceptedSocket, *kind)
        if sock.family != socket.AF_UNIX:
            # Accepted sockets inherit it (tcp(7)), so that no system call per client is needed.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._bound_path = None if inherited else _identity(address.path)

    def accept(self) -> tuple[AcceptedSocket, Any]:
        """Accept a client (accept(2)).

        :raises OSError: as accept(2)
        """
        # socket.accept() would create a socket.socket.
        descriptor, peer = self.sock._accept()  # type: ignore[attr-defined]  # noqa: SLF001 - see above
        return self._accepted(descriptor), peer

    @property
    def path(self) -> Path | None:
        """The path of a unix socket, else None."""
        return self.address.path

    def is_ours(self) -> bool:
        """Whether this process owns the unix socket's path, and the path was not replaced."""
        return self._bound_path is not None and _identity(self.address.path) == self._bound_path

    def hand_over(self) -> None:
        """Leave the backlog and the path to another process that has the same socket."""
        self.inherited = True
        self._bound_path = None

    def take_ownership(self) -> None:
        """Own the backlog and the path, after the old process has called :meth:`hand_over`."""
        self.inherited = False
        self._bound_path = _identity(self.address.path)

    def remove(self) -> None:
        """Remove the path that an ended process left, unless it was replaced.

        :raises OSError: it cannot be removed
        """
        if self.path is not None:
            with exclusively(self.path):
                if self.is_ours():
                    self.path.unlink()

    def close(self) -> None:
        """Close the socket; remove the path of a unix socket, unless it was replaced."""
        if self.path is not None and self.is_ours():
            # Removed while the socket still listens, as another process replaces the path of a
            # socket that does not answer. If this process may no longer remove it (privileges were
            # dropped), the cleanup process does.
            with suppress(OSError):
                self.path.unlink()
        self.sock.close()

    @property
    def description(self) -> str:
        """The address as text; it says so if an IPv6 socket accepts IPv4 as well."""
        if self.sock.family != socket.AF_INET6 or self.bound[0] != "::":
            return str(self)
        v6only = self.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        return str(self) if v6only else f"{self} (IPv6 and IPv4)"

    def __str__(self) -> str:
        text = f"unix:{self.path}" if self.path is not None else describe(self.bound)
        return text if self.address.scheme == "smtp" else f"{self.address.scheme}:{text}"


@contextmanager
def closed_on_error(opened: Collection[Listener | socket.socket]) -> Iterator[None]:
    """Close all of *opened*, which may grow meanwhile, if the block raises an exception."""
    try:
        yield
    except BaseException:
        for each in opened:
            each.close()
        raise


def _identity(path: Path | None) -> tuple[int, int, int] | None:
    """Return an identity of the file at *path* that no other file has, not even a later one."""
    if path is None:
        return None
    try:
        status = path.lstat()
    except OSError:
        return None
    # The inode number of a removed file is soon reused; a socket's mtime is the time of bind(2).
    return status.st_dev, status.st_ino, status.st_mtime_ns
