"""Backlog: the number of clients that wait in the kernel for accept(2), and what happens to them.

For TCP, TCP_INFO of a listening socket has the number and the maximum, in two fields that have
another meaning for a connection (tcp(7), and net/ipv4/tcp.c: ``tcpi_unacked``, ``tcpi_sacked``).
For unix sockets the numbers are queried by netlink (sock_diag(7)). Where neither is available, the
backlog is unknown.
"""

from __future__ import annotations

import os
import socket
import struct
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Backlog", "State", "backlog_of", "waiting_in"]

_TCP_INFO_FIELDS = struct.Struct("=8x4x4x4x4xII")
"""struct tcp_info up to ``tcpi_sacked``: eight bytes, four numbers, and the two that are used."""

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_UDIAG_SHOW_RQLEN = 0x10
_UNIX_DIAG_RQLEN = 4
_ANY_COOKIE = 0xFFFFFFFF
_ALL_STATES = 0xFFFFFFFF

_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBHIIIII")
_ANSWER = struct.Struct("=BBBBIII")
_ATTRIBUTE = struct.Struct("=HH")
_LENGTHS = struct.Struct("=II")


class Backlog(NamedTuple):
    """The length and the limit of the backlog of one listening socket.

    :ivar waiting: clients in the backlog
    :ivar limit: the argument of listen(2), or less (``somaxconn``)
    """

    waiting: int
    limit: int


class State(Enum):
    """States of an acceptor, by what happens to clients in the backlog; the last two are final."""

    CLOSED = "they wait: the server has not started yet, or no connection slot is free"
    OPEN = "they are accepted, a limited number in one wake-up of a listener"
    PAUSED = "another process accepts them, on the same sockets; this one may accept again later"
    STARVED = "no file descriptor is free: some got 421, and accepting is retried after a pause"
    WITHDRAWN = "another process accepts them, on the same sockets"
    STOPPED = "they got 421, and the sockets are closed"


def backlog_of(sock: socket.socket) -> Backlog | None:
    """Return the backlog of a listening socket; None if the system does not report it."""
    try:
        if sock.family == socket.AF_UNIX:
            return _of_unix(os.fstat(sock.fileno()).st_ino)
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_FIELDS.size)
        return Backlog(*_TCP_INFO_FIELDS.unpack(info))
    except (OSError, AttributeError, struct.error):  # closed, not Linux, or an older kernel
        return None


def waiting_in(sockets: Iterable[socket.socket]) -> int:
    """Return the number of clients in the backlogs of *sockets*; an unknown one counts as one."""
    backlogs = map(backlog_of, sockets)
    return sum(1 if backlog is None else backlog.waiting for backlog in backlogs)


def _of_unix(inode: int) -> Backlog | None:
    """Query the kernel for a unix socket by its inode (sock_diag(7), ``struct unix_diag_req``)."""
    request = _REQUEST.pack(
        *(socket.AF_UNIX, 0, 0, _ALL_STATES, inode & 0xFFFFFFFF, _UDIAG_SHOW_RQLEN),
        *(_ANY_COOKIE, _ANY_COOKIE),
    )
    size = _HEADER.size + len(request)
    header = _HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.setblocking(False)  # the kernel answers within sendto(2)
        netlink.sendto(header + request, (0, 0))
        answer = netlink.recv(4096)
    if _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return None
    position = _HEADER.size + _ANSWER.size
    while position + _ATTRIBUTE.size <= len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, position)
        if kind == _UNIX_DIAG_RQLEN:
            return Backlog(*_LENGTHS.unpack_from(answer, position + _ATTRIBUTE.size))
        position += max(_ATTRIBUTE.size, (length + 3) & ~3)
    return None
