"""Connection: a client's connection to the control socket."""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from smtpd_fork.control_protocol import MAX_REPLY, VERSION, Fault
from smtpd_fork.errors import (
    ExitStatus,
    NotFoundError,
    NotPermittedError,
    ProtocolError,
    SmtpdForkError,
    UnavailableError,
    UsageError,
)
from smtpd_fork.sanitizer import printable

__all__ = ["Connection", "GoneError"]

TIMEOUT_SECONDS = 15.0
"""Timeout of a request; longer than the daemon takes for any reply but that of a reload."""

_CHUNK = 1 << 16

_ERRORS: dict[Fault, type[SmtpdForkError]] = {
    Fault.REQUEST: UsageError,
    Fault.VERSION: ProtocolError,
    Fault.PERMISSION: NotPermittedError,
    Fault.BUSY: UnavailableError,
    Fault.UNKNOWN: NotFoundError,
    Fault.REFUSED: UsageError,
    Fault.FAILED: SmtpdForkError,
}

Reply = TypeVar("Reply")


class GoneError(UnavailableError):
    """The daemon has closed the connection, as it ended (69)."""


class Connection:
    """A connection to the daemon with the control socket *path*, for requests one after another.

    :ivar timeout: seconds to wait for a reply
    :raises UnavailableError: no daemon answers
    :raises NotPermittedError: the file mode does not permit access to this user
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.timeout = TIMEOUT_SECONDS
        self._held = b""
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(TIMEOUT_SECONDS)
        try:
            self._sock.connect(path)
        except PermissionError:
            self._sock.close()
            text = f"permission denied at {path}: only root and the daemon's user have access"
            raise NotPermittedError(text) from None
        except OSError as error:
            self._sock.close()
            raise UnavailableError(f"no daemon answers at {path}: {_reason(error)}") from None

    def ask(self, command: str, as_type: type[Reply], **fields: Any) -> Reply:
        """Send a request; return the reply as an object of *as_type*.

        :raises GoneError: the daemon has ended
        :raises UnavailableError: it does not answer in time, or has too many clients
        :raises ProtocolError: the process at the socket is not a daemon of this kind
        :raises SmtpdForkError: the daemon cannot carry out the request; the class depends on the
            reason
        """
        reply = self.ask_for_json(command, **fields)
        try:
            return msgspec.convert(reply, as_type)
        except msgspec.ValidationError as error:
            raise self._no_daemon(str(error)) from None

    def ask_for_json(self, command: str, **fields: Any) -> dict[str, Any]:
        """Send a request; return the reply as a dict. Raises the same errors as :meth:`ask`."""
        given = {name: value for name, value in fields.items() if value is not None}
        request = json.dumps({"v": VERSION, "command": command, **given}).encode() + b"\n"
        try:
            with suppress(BrokenPipeError, ConnectionResetError):
                # If the daemon refuses this client, it has sent a reply and closed the connection.
                self._sock.sendall(request)
            line = self._line()
        except ConnectionError:
            raise GoneError(f"the daemon at {self._path} has ended") from None
        except OSError as error:
            text = f"the daemon at {self._path} does not answer: {_reason(error)}"
            raise UnavailableError(text) from None
        return self._read(line)

    def _line(self) -> bytes:
        """Return the next line. The time limit is that of the whole line, not of its parts."""
        deadline = time.monotonic() + self.timeout
        received = [self._held]
        size = len(self._held)
        while b"\n" not in received[-1]:
            if size > MAX_REPLY:
                raise self._no_daemon("its reply is longer than the maximum")
            self._sock.settimeout(max(0.001, deadline - time.monotonic()))
            chunk = self._sock.recv(_CHUNK)
            if not chunk:
                raise GoneError(f"the daemon at {self._path} has ended")
            received.append(chunk)
            size += len(chunk)
        line, _, self._held = b"".join(received).partition(b"\n")
        return line

    def _read(self, line: bytes) -> dict[str, Any]:
        try:
            reply = msgspec.json.decode(line)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise self._no_daemon("its reply is not JSON") from None
        if not isinstance(reply, dict) or reply.get("v") != VERSION:
            raise self._no_daemon(f"not version {VERSION} of the protocol")
        if reply.get("ok") is True:
            return reply
        try:
            kind = _ERRORS[Fault(str(reply.get("fault")))]
        except ValueError:
            raise self._no_daemon("its reply has an unknown value of fault") from None
        error = kind(printable(str(reply.get("text", "")), 1000))
        if reply.get("status") in list(ExitStatus):
            error.exit_status = ExitStatus(reply["status"])
        raise error

    def _no_daemon(self, reason: str) -> ProtocolError:
        reason = printable(reason, 200)
        return ProtocolError(f"the process at {self._path} is not this daemon: {reason}")

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()


def _reason(error: OSError) -> str:
    return "timeout" if isinstance(error, TimeoutError) else error.strerror or str(error)
