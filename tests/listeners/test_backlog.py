"""Backlog: the number of clients that wait in the kernel, and its limit."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from support.peers import needs_ipv6

from smtpd_fork.listeners.backlog import backlog_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_backlog_of_a_tcp_socket_is_known(host: str) -> None:
    if ":" in host:
        needs_ipv6()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as stack:
        sock = stack.enter_context(socket.create_server((host, 0), family=family, backlog=9))
        assert backlog_of(sock) == (0, 9)
        for _ in range(3):
            stack.enter_context(socket.create_connection(sock.getsockname()[:2]))
        assert backlog_of(sock) == (3, 9)
        sock.accept()[0].close()
        assert backlog_of(sock) == (2, 9)


def test_the_backlog_of_a_unix_socket_is_known(tmp_path: Path) -> None:
    with ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.bind(str(tmp_path / "socket"))
        sock.listen(7)
        for _ in range(2):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(tmp_path / "socket"))
        assert backlog_of(sock) == (2, 7)


def test_the_backlog_of_a_closed_socket_is_unknown(tmp_path: Path) -> None:
    for family in (socket.AF_INET, socket.AF_UNIX):
        sock = socket.socket(family)
        sock.close()
        assert backlog_of(sock) is None


def test_a_backlog_that_the_system_does_not_report_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(socket, "TCP_INFO")
    monkeypatch.delattr(socket, "AF_NETLINK")
    with socket.create_server(("127.0.0.1", 0)) as sock, socket.socket(socket.AF_UNIX) as unix:
        assert backlog_of(sock) is None
        assert backlog_of(unix) is None
