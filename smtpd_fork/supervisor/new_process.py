"""Wait until a new process is ready; :mod:`smtpd_fork.daemon.handover` describes its messages."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

__all__ = ["NotReadyError", "wait_until_ready"]

MAX_BYTES = 4096
"""Bytes that are kept of the messages of a new process."""


class NotReadyError(Exception):
    """The new process cannot serve; the text is the reason."""


async def wait_until_ready(
    sock: socket.socket,
    ended: Callable[[], Awaitable[int | str]],
    began: Callable[[int], object] = lambda _: None,
) -> None:
    """Wait until the new process is ready.

    :param sock: on which the new process sends its messages
    :param ended: waits for the end of the process that was started, and returns its exit status
    :param began: called with the process id that the new process reports, if it has changed
    :raises NotReadyError: the new process cannot serve, or has ended
    """
    loop = asyncio.get_running_loop()
    received, last_line = b"", ""
    while chunk := await loop.sock_recv(sock, MAX_BYTES):
        *lines, received = (received + chunk).split(b"\n")
        received = received[-MAX_BYTES:]
        for text in (some.decode("utf-8", "replace").strip() for some in lines):
            word, _, rest = text.partition(" ")
            if word == "ready":
                return
            if word == "failed":
                raise NotReadyError(rest)
            if word == "pid" and rest.isdecimal():
                began(int(rest))
            elif word == "reparented":
                await ended()
            elif text:
                last_line = text[:MAX_BYTES]  # the last line of a traceback is the reason
    status = await ended()
    raise NotReadyError(f"it ended with status {status}{': ' if last_line else ''}{last_line}")
