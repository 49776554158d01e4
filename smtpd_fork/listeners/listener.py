"""Listener: one listening socket, and the address it was asked for."""

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
    """A client's socket, without what makes :class:`socket.socket` cost more than accept(2) does.

    There an enum is looked up each time that the loop asks for the family or the type.
    """

    __slots__ = ()

    family = socket.SocketType.family  # type: ignore[assignment]  # an int, which enums equal
    type = socket.SocketType.type  # type: ignore[assignment]  # as above
    detach = socket.SocketType.detach


class Listener:
    """A socket that listens, and the address it was asked for.

    :ivar address: what was asked for
    :ivar tls: whether it is implicit TLS
    :ivar proxy: whether a PROXY header comes first
    :ivar sock: the socket; non-blocking, listening
    :param inherited: another process bound it, so its path is not ours to remove
    :ivar bound: what it is really bound to: ``(host, port, ...)``, or the path of a unix socket
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
            # Clients' sockets inherit it (tcp(7)). A loop's transport sets it on each.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._bound_path = None if inherited else _identity(address.path)

    def accept(self) -> tuple[AcceptedSocket, Any]:
        """Accept a client (accept(2)).

        :raises OSError: as accept(2)
        """
        # Not socket.accept(), which makes a socket.socket.
        descriptor, peer = self.sock._accept()  # type: ignore[attr-defined]  # noqa: SLF001 - see above
        return self._accepted(descriptor), peer

    @property
    def path(self) -> Path | None:
        """The path of a unix socket, else None."""
        return self.address.path

    def is_ours(self) -> bool:
        """Whether the path of the unix socket is still the one that was bound here."""
        return self._bound_path is not None and _identity(self.address.path) == self._bound_path

    def let_go(self) -> None:
        """Leave the backlog, and the path, to another process that has the socket too."""
        self.inherited = True
        self._bound_path = None

    def take_over(self) -> None:
        """Have the backlog, and the path, from a process that let go of them."""
        self.inherited = False
        self._bound_path = _identity(self.address.path)

    def remove(self) -> None:
        """Remove the path of a process that has ended, if it is still that one's.

        :raises OSError: it cannot be removed
        """
        if self.path is not None:
            with exclusively(self.path):
                if self.is_ours():
                    self.path.unlink()

    def close(self) -> None:
        """Close the socket; a unix socket's path is removed if it is still this one's."""
        if self.path is not None and self.is_ours():
            # While it listens no other process takes the path for a dead one's and replaces it.
            # Without the right to remove it (privileges were dropped) the cleanup process does.
            with suppress(OSError):
                self.path.unlink()
        self.sock.close()

    @property
    def described(self) -> str:
        """The address, and that it is of IPv4 as well, if it is."""
        if self.sock.family != socket.AF_INET6 or self.bound[0] != "::":
            return str(self)
        v6only = self.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        return str(self) if v6only else f"{self} (IPv6 and IPv4)"

    def __str__(self) -> str:
        place = f"unix:{self.path}" if self.path is not None else describe(self.bound)
        return place if self.address.scheme == "smtp" else f"{self.address.scheme}:{place}"


@contextmanager
def closed_on_error(opened: Collection[Listener | socket.socket]) -> Iterator[None]:
    """Close all of *opened*, to which more may be added meanwhile, if anything is raised."""
    try:
        yield
    except BaseException:
        for each in opened:
            each.close()
        raise


def _identity(path: Path | None) -> tuple[int, int, int] | None:
    """Return what tells the file at *path* from all others, also from later ones."""
    if path is None:
        return None
    try:
        status = path.lstat()
    except OSError:
        return None
    # A removed file's inode number is soon another's; a socket's mtime is when it was bound.
    return status.st_dev, status.st_ino, status.st_mtime_ns
