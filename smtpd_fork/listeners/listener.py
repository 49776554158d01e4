"""Listener: one bound socket, and how it is announced."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from smtpd_fork.net import describe

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from smtpd_fork.listeners.address import Address

__all__ = ["Listener"]


class Listener:
    """A socket that listens, and the address it was asked for.

    :ivar address: what was asked for
    :ivar sock: the socket; non-blocking, listening
    :param inherited: somebody else bound it, so its path is not ours to remove
    :ivar bound: what it is really bound to: ``(host, port, ...)``, or the path of a unix socket
    """

    def __init__(self, address: Address, sock: socket.socket, *, inherited: bool = False) -> None:
        self.address = address
        self.inherited = inherited
        self.sock = sock
        self.bound: Any = sock.getsockname()
        self._inode: tuple[int, int] | None = None
        if address.path is not None and not inherited:
            status = address.path.stat()
            self._inode = (status.st_dev, status.st_ino)

    @property
    def tls(self) -> bool:
        """Whether TLS is spoken from the first byte."""
        return self.address.tls

    @property
    def path(self) -> Path | None:
        """The path of a unix socket, else None."""
        return self.address.path

    @property
    def path_inode(self) -> tuple[int, int] | None:
        """Device and inode of a unix socket's path when it was bound, else None."""
        return self._inode

    def close(self) -> None:
        """Close the socket; a unix socket's path is removed if it is still this one's."""
        self.sock.close()
        if self.path is None:
            return
        # Without the right to remove it (privileges were dropped) whoever kept it does.
        with suppress(OSError):
            status = self.path.lstat()
            if (status.st_dev, status.st_ino) == self._inode:
                self.path.unlink()

    def __str__(self) -> str:
        place = f"unix:{self.path}" if self.path is not None else describe(self.bound)
        return place if self.address.scheme == "smtp" else f"{self.address.scheme}:{place}"
