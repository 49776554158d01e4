"""What a new process says on the line of :mod:`smtpd_fork.daemon.handover`, until it is ready."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

__all__ = ["NotReadyError", "until_ready"]

MAX_HEARD = 4096
"""Bytes that are kept of what a new process says."""


class NotReadyError(Exception):
    """The new process will not serve; says why."""


async def until_ready(
    line: socket.socket,
    ended: Callable[[], Awaitable[int | str]],
    began: Callable[[int], object] = lambda _: None,
) -> None:
    """Wait until the new process is ready.

    :param ended: returns the exit status of the process that was started
    :param began: is called with the process id, if it is another one's
    :raises NotReadyError: it says that it cannot serve, or has ended
    """
    loop = asyncio.get_running_loop()
    heard, last_words = b"", ""
    while chunk := await loop.sock_recv(line, MAX_HEARD):
        *lines, heard = (heard + chunk).split(b"\n")
        heard = heard[-MAX_HEARD:]
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
                last_words = text[:MAX_HEARD]  # of a traceback, the last line is the reason
    status = await ended()
    raise NotReadyError(f"it ended with status {status}{': ' if last_words else ''}{last_words}")
