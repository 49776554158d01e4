"""Logs under test: receivers of entries, receivers that fail, and journald's parser."""

from __future__ import annotations

import array
import json
import logging
import os
import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from smtpd_fork.config import DaemonConfig
from smtpd_fork.observe.logs import setup

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from smtpd_fork.observe.logs import LogQueue

HOSTILE = "a\r\n2026-01-01 00:00:00,000 ERROR forged\x00\x1b[2J\x7f\x85\x9b\u2028\u202eé\udc80\tz"
"""Characters that could end or begin a line, or control a terminal."""


@contextmanager
def logging_with(**settings: Any) -> Iterator[LogQueue]:
    """Log in this process as the daemon does; at the end restore the previous state."""
    root, mail = logging.getLogger(), logging.getLogger("mail.log")
    before = root.level, mail.level, logging.raiseExceptions
    log_queue = setup.log_queue_of(DaemonConfig.build(settings))
    assert log_queue is not None
    root.addHandler(log_queue)
    setup.set_level(str(settings.get("log_level", "info")))
    try:
        yield log_queue
    finally:
        root.removeHandler(log_queue)
        log_queue.close()
        root.setLevel(before[0])
        mail.setLevel(before[1])
        logging.raiseExceptions = before[2]


def objects(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a log in JSON; fail if a line is not valid."""
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b""
    return [json.loads(line) for line in lines]


def bound(path: Path) -> socket.socket:
    """Return a datagram socket bound to *path*, as that of syslogd or journald."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(path))
    sock.settimeout(20)
    return sock


def entry_from(sock: socket.socket) -> dict[str, str]:
    """Receive one entry of the native journal protocol, as journald does: inline, or as a memfd."""
    data, ancillary, _, _ = sock.recvmsg(1 << 20, socket.CMSG_SPACE(4))
    for level, kind, rights in ancillary:
        assert (level, kind, data) == (socket.SOL_SOCKET, socket.SCM_RIGHTS, b"")
        (descriptor,) = array.array("i", rights)
        with os.fdopen(descriptor, "rb") as file:
            file.seek(0)
            data = file.read()
    return parse(data)


def parse(data: bytes) -> dict[str, str]:
    """Return the fields of an entry of the native journal protocol."""
    entry: dict[str, str] = {}
    while data:
        name, _, data = data.partition(b"\n")
        if b"=" in name:
            name, _, value = name.partition(b"=")
        else:
            (size,) = struct.unpack_from("<Q", data)
            value, data = data[8 : 8 + size], data[9 + size :]
        assert name.decode() not in entry
        entry[name.decode()] = value.decode()
    return entry
