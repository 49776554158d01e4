"""GreetPause: clients that have to wait for the greeting; who talks before it is no mail server.

RFC 5321 3.1 and 4.3.1: a client waits for the greeting. What sends spam often does not, and gives
itself away in a second or two. A client that waits here costs its ticket and a descriptor: there is
no transport and no session before the pause is over.
"""

from __future__ import annotations

import socket
from collections import deque
from typing import TYPE_CHECKING

from smtpd_fork.gate import Refusal
from smtpd_fork.gate.verdict import shutdown_reply
from smtpd_fork.listeners.refuse import refuse

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from smtpd_fork.gate import Ticket
    from smtpd_fork.listeners.listener import Listener
    from smtpd_fork.net import SocketAddress

    Welcome = Callable[[Listener, socket.socket, SocketAddress | str, Ticket], None]
    Refuse = Callable[[Listener, socket.socket, Refusal], None]

__all__ = ["GreetPause"]

RULE = "greet_pause"


class _Paused:
    """One client that waits for the greeting."""

    __slots__ = ("deadline", "gone", "listener", "peer", "sock", "ticket")

    phase = "greet-pause"
    tls = False
    messages = 0

    def __init__(
        self,
        listener: Listener,
        sock: socket.socket,
        peer: SocketAddress | str,
        ticket: Ticket,
        deadline: float,
    ) -> None:
        self.listener = listener
        self.sock = sock
        self.peer = peer
        self.ticket = ticket
        self.deadline = deadline
        self.gone = False


class GreetPause:
    """Holds clients for so long, and lets those in who kept silent.

    :param seconds: how long, the same for all
    :param welcome: takes who kept silent: listener, socket, peer, ticket
    :param refuse: answers who did not, and closes
    """

    def __init__(
        self,
        seconds: float,
        loop: asyncio.AbstractEventLoop,
        *,
        welcome: Welcome,
        refuse: Refuse,
    ) -> None:
        self._seconds = seconds
        self._loop = loop
        self._welcome = welcome
        self._refuse = refuse
        # In the order of their deadlines, as all wait equally long: one timer does for all.
        self._queue: deque[_Paused] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def hold(
        self, listener: Listener, sock: socket.socket, peer: SocketAddress | str, ticket: Ticket
    ) -> None:
        """Have a client wait; socket and ticket are this one's until it is let in or has gone."""
        deadline = self._loop.time() + self._seconds
        paused = _Paused(listener, sock, peer, ticket, deadline)
        ticket.holder = paused
        ticket.listener = listener
        self._queue.append(paused)
        self._loop.add_reader(sock, self._heard, paused)
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._due)

    def _heard(self, paused: _Paused) -> None:
        """Act on a client that talks, or has gone, before it was greeted."""
        try:
            talks = bool(paused.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return
        except OSError:
            talks = False
        self._release(paused)
        if talks:
            key = paused.ticket.key or "unix"
            text = "Wait for the greeting"
            refusal = Refusal(RULE, key, 1, 0, code=554, status="5.5.1", text=text)
            self._refuse(paused.listener, paused.sock, refusal)
        else:
            paused.sock.close()
        paused.ticket.release()

    def _release(self, paused: _Paused) -> None:
        self._loop.remove_reader(paused.sock)
        paused.gone = True

    def _due(self) -> None:
        """Let in whose pause is over."""
        self._timer = None
        now = self._loop.time()
        while self._queue and (self._queue[0].gone or self._queue[0].deadline <= now):
            paused = self._queue.popleft()
            if paused.gone:
                continue
            self._heard(paused)  # what came in this very turn
            if not paused.gone:
                self._release(paused)
                self._welcome(paused.listener, paused.sock, paused.peer, paused.ticket)
        if self._queue:
            self._timer = self._loop.call_at(self._queue[0].deadline, self._due)

    def stop(self, hostname: str) -> int:
        """Answer 421 to all who wait; return how many there were."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        answered = 0
        for paused in self._queue:
            if not paused.gone:
                self._release(paused)
                refuse(paused.sock, shutdown_reply(hostname))
                paused.ticket.release()
                answered += 1
        self._queue.clear()
        return answered
