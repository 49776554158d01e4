"""Control: the service that answers requests on the control socket.

A client of the control socket can end the daemon. Therefore it is a unix socket of mode 0600, and
the credentials of the peer are checked as well. To limit how long clients can delay mail and each
other, the number of clients and the size of requests and replies are limited, one request is
carried out at a time, and after it the service pauses for four times the time that it took.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import smtpd_fork.control_protocol as protocol
from smtpd_fork.config import SettingError
from smtpd_fork.control_protocol import Fault, RequestError
from smtpd_fork.listeners import Address, Listener, bind_all
from smtpd_fork.listeners.address import MAX_UNIX_PATH
from smtpd_fork.listeners.refusals import refuse
from smtpd_fork.observe.control.administration import Administration
from smtpd_fork.observe.service import Observed, Service
from smtpd_fork.sanitizer import printable

if TYPE_CHECKING:
    from smtpd_fork.observe.reload_outcome import ReloadOutcome

__all__ = ["Control", "DrainOrder", "open_control"]

log = logging.getLogger("smtpd_fork.control")

MODE = 0o600
BACKLOG = 16

MAX_CLIENTS = 8
"""Maximum concurrent clients: an administrator, a few ``status --watch``, and a script."""

IDLE_SECONDS = 10.0
"""Time limit for receiving a complete request."""

REPLY_SECONDS = 10.0
"""Time limit for sending a reply."""

PAUSE_FACTOR = 4
"""Length of the pause after a request, relative to its duration: requests use at most a fifth of
the time of the event loop."""

MAX_PAUSE_SECONDS = 0.5
"""Maximum pause in seconds; a request that waits for the disk does not use the event loop."""

STARVED_SECONDS = 1.0
"""Pause before the next accept(2) when file descriptors ran out."""

WARNING_INTERVAL_SECONDS = 5.0
"""Minimum time between two log lines about refused clients."""

_CREDENTIALS = struct.Struct("3i")
"""struct ucred of unix(7): pid, uid, gid."""


class DrainOrder(NamedTuple):
    """The order to end the daemon with its last session.

    :ivar seconds: time limit for the sessions; None: no limit
    """

    seconds: float | None


class _Peer(NamedTuple):
    pid: int
    uid: int
    gid: int

    @classmethod
    def of(cls, sock: socket.socket) -> _Peer:
        """Return the process that connected *sock* (SO_PEERCRED, unix(7)).

        :raises OSError: the kernel does not report it
        """
        packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return cls(*_CREDENTIALS.unpack(packed))

    @property
    def is_permitted(self) -> bool:
        return self.uid in {0, os.geteuid()}

    def __str__(self) -> str:
        return f"uid {self.uid}, pid {self.pid}"


def open_control(path: str) -> Listener:
    """Bind the control socket at *path* and listen; only its owner can connect to it.

    :raises SettingError: the path is too long for a socket
    :raises CannotCreateError: the path cannot be created
    :raises OperatingSystemError: another daemon answers there
    """
    absolute = Path(path).absolute()
    if len(bytes(absolute)) > MAX_UNIX_PATH:
        reason = f"the path is too long; unix sockets take {MAX_UNIX_PATH} bytes"
        raise SettingError("control", path, reason)
    (listener,) = bind_all([Address(path=absolute)], backlog=BACKLOG, socket_mode=MODE)
    return listener


class Control(Service):
    """Answers administrators.

    :param listener: opened by :func:`open_control`
    :param drain: ends the daemon with its last session, or after the given number of seconds
    :param reload: reads the settings again; its argument is the administrator, for the log
    :param administration: carries out the requests; default: an administration of *server*
    """

    def __init__(
        self,
        listener: Listener,
        server: Observed,
        drain: Callable[[float | None], None],
        reload: Callable[[str], Awaitable[ReloadOutcome]],
        administration: Administration | None = None,
    ) -> None:
        self._listener = listener
        self._administration = administration or Administration(server, drain)
        self._reload = reload
        self._clients: set[asyncio.Task[None]] = set()
        self._request_lock = asyncio.Lock()
        self._paused_until = 0.0
        self._pause_timer: asyncio.TimerHandle | None = None
        self._answering = False
        self._handed_over = False
        self._warned_at = -WARNING_INTERVAL_SECONDS

    def __str__(self) -> str:
        return f"the control socket {self._listener.path}"

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    # -- life cycle ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Answer requests, unless the old process of an upgrade still does."""
        if not self._listener.inherited:
            await self.serving()

    async def serving(self) -> None:
        """Answer requests, also those that arrived while the old process answered."""
        if not self._answering:
            self._answering = True
            self._loop.add_reader(self._listener.sock, self._accept)
            log.info("control socket %s", self._listener.path)

    def sockets(self) -> Mapping[str, socket.socket]:
        """Return the listening socket."""
        return {"control": self._listener.sock}

    async def handed_over(self, pid: int) -> None:
        """Leave further requests to the new process."""
        self._stop_answering()
        self._listener.hand_over()
        self._handed_over = True

    def _stop_answering(self) -> None:
        """Stop accepting clients."""
        if self._answering:
            self._answering = False
            self._loop.remove_reader(self._listener.sock)
        if self._pause_timer is not None:
            self._pause_timer.cancel()
            self._pause_timer = None

    async def stopping(self) -> None:
        """Show the stop in the status; requests are answered until its end."""
        self._administration.ending = self._administration.ending or "stopping"

    async def stop(self) -> None:
        """Close all connections, and remove the path."""
        self._stop_answering()
        self._listener.close()
        for task in self._clients:
            task.cancel()
        if self._clients:
            await asyncio.wait(self._clients)

    # -- clients -------------------------------------------------------------------------------

    def _accept(self) -> None:
        """Accept one client; the event loop calls this again, after the events of sessions."""
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return
        except OSError as error:
            self._pause_accepting(error)
            return
        sock.setblocking(False)
        try:
            peer = _Peer.of(sock)
        except OSError:
            sock.close()
        else:
            self._admit(sock, peer)

    def _admit(self, sock: socket.socket, peer: _Peer) -> None:
        if not peer.is_permitted:
            text = f"uid {peer.uid} has no permission: only root and the user of the daemon do"
            self._refuse(sock, peer, RequestError(Fault.PERMISSION, text))
        elif len(self._clients) >= MAX_CLIENTS:
            text = f"there are {MAX_CLIENTS} clients already; try again"
            self._refuse(sock, peer, RequestError(Fault.BUSY, text))
        else:
            task = self._loop.create_task(self._serve(sock, peer))
            self._clients.add(task)
            task.add_done_callback(self._clients.discard)
            task.add_done_callback(lambda _: sock.close())  # also if the task never ran

    def _pause_accepting(self, error: OSError) -> None:
        """Stop accepting for a while, as the system has no free descriptors or memory."""
        log.error("control: cannot accept: %s", error.strerror)
        self._loop.remove_reader(self._listener.sock)
        self._pause_timer = self._loop.call_later(
            STARVED_SECONDS, self._loop.add_reader, self._listener.sock, self._accept
        )

    def _refuse(self, sock: socket.socket, peer: _Peer, fault: RequestError) -> None:
        refuse(sock, protocol.encode_fault(fault))
        now = self._loop.time()
        if now - self._warned_at >= WARNING_INTERVAL_SECONDS:
            self._warned_at = now
            log.warning("control: %s was refused: %s", peer, fault.fault)

    async def _serve(self, sock: socket.socket, peer: _Peer) -> None:
        """Answer one client until it closes, violates the protocol, or exceeds a time limit."""
        limit = protocol.MAX_REQUEST
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=limit)
        writer.transport.set_write_buffer_limits(high=0)  # drain() waits until all is sent
        try:
            await self._answer_requests(reader, writer, peer)
        except OSError as error:  # TimeoutError is a subclass
            log.debug("control: %s disconnected, or does not read: %s", peer, error)
        finally:
            writer.transport.abort()  # close() would wait until the client reads the reply

    async def _answer_requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: _Peer
    ) -> None:
        while True:
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    line = await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError:
                return
            except asyncio.LimitOverrunError:
                text = f"a request may have at most {protocol.MAX_REQUEST} bytes"
                await self._send(writer, protocol.encode_fault(RequestError(Fault.REQUEST, text)))
                return
            await self._send(writer, await self._answer(line, peer))

    async def _send(self, writer: asyncio.StreamWriter, line: bytes) -> None:
        if writer.transport.is_closing():
            raise ConnectionResetError  # uvloop's write() would raise a RuntimeError
        writer.write(line)
        async with asyncio.timeout(REPLY_SECONDS):
            await writer.drain()

    def _check_not_handed_over(self) -> None:
        """Refuse requests after an upgrade, as this process ends, and their effect with it.

        :raises RequestError: a new process serves
        """
        if self._handed_over:
            raise RequestError(Fault.BUSY, "a new process serves now; try again")

    async def _answer(self, line: bytes, peer: _Peer) -> bytes:
        """Return the reply to a request."""
        try:
            reply = await self._carry_out(line, peer)
            if reply is None:
                reply = protocol.encode({"ok": True, **await self._reload_settings(peer)})
        except RequestError as error:
            return protocol.encode_fault(error)
        except Exception:
            log.exception("control: a request failed")
            text = "internal error of the daemon; its log has the details"
            return protocol.encode_fault(RequestError(Fault.FAILED, text))
        else:
            return reply

    async def _carry_out(self, line: bytes, peer: _Peer) -> bytes | None:
        """Return the reply to a request; one request at a time, with a pause after it.

        :returns: None for a reload, which must not block other requests
        """
        async with self._request_lock:
            await asyncio.sleep(self._paused_until - self._loop.time())
            began = self._loop.time()
            try:
                request = protocol.decode(line)
                self._check_not_handed_over()
                if isinstance(request, protocol.Reload):
                    return None
                answer = await self._administration.answer(request, str(peer))
                return protocol.encode({"ok": True, **answer})
            finally:
                now = self._loop.time()
                self._paused_until = now + min(MAX_PAUSE_SECONDS, PAUSE_FACTOR * (now - began))

    async def _reload_settings(self, peer: _Peer) -> dict[str, Any]:
        """Reload the settings; the reload continues if the client disconnects."""
        outcome = await asyncio.shield(asyncio.ensure_future(self._reload(f"control: {peer}")))
        if outcome.reason:
            raise RequestError(Fault.REFUSED, printable(str(outcome), 1000), outcome.status)
        return {"changes": list(outcome.changes), "restart": list(outcome.restart)}
