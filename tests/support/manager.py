"""A service manager for tests of sd_notify(3): a datagram socket, and the received messages."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Self

from support.daemon import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

Message = dict[str, str]


class Manager:
    """Listens for notifications; a context manager.

    :param address: a path, or ``@NAME`` for an abstract socket
    :ivar messages: received so far
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.messages: list[Message] = []
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind("\0" + address[1:] if address.startswith("@") else address)

    def wait_for(self, what: Callable[[Message], object]) -> Message:
        """Return the next message for which *what* is true, and drop those before it."""
        deadline = time.monotonic() + PATIENCE
        while (left := deadline - time.monotonic()) > 0:
            self.sock.settimeout(left)
            try:
                data = self.sock.recv(65536)
            except TimeoutError:
                break
            lines = data.decode().split("\n")
            message = dict(line.split("=", 1) for line in lines)
            self.messages.append(message)
            if what(message):
                return message
        raise AssertionError(f"no such message; received: {self.messages}")

    def wait_for_field(self, name: str) -> Message:
        return self.wait_for(lambda message: name in message)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()
