"""Acceptor: accept(2) for all listeners of a server, behind one gate.

It is the loop's reader of the listening sockets, and in one of three states:

- *open*: every listener is watched; one wake-up accepts a bounded burst;
- *waiting for room*: the gate is full and clients are deferred. No listener is watched, clients
  stay in the kernel's backlog, and the gate calls back when a ticket is released;
- *out of descriptors*: a spare one answers 421, and a timer or a released ticket opens again.

The gate is asked before accept(2), so nobody is accepted who would have to be deferred. Only a
gate that is shared with another thread can fill up in between: that one client is kept, and is
the first to come in.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from smtpd_fork.gate import Full, Gate, Refusal, Ticket
from smtpd_fork.gate.networks import NetworkTable, number_of
from smtpd_fork.gate.verdict import shutdown_reply
from smtpd_fork.listeners.backlog import backlog_of
from smtpd_fork.listeners.refusals import Spare, refuse
from smtpd_fork.listeners.wait_queue import WaitQueue
from smtpd_fork.net import source_key

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Sequence

    from smtpd_fork.config import WhenFull
    from smtpd_fork.gate import Verdict
    from smtpd_fork.listeners.listener import Listener
    from smtpd_fork.listeners.preconnect import Preconnect
    from smtpd_fork.listeners.probes import Probes
    from smtpd_fork.listeners.refusals import Refuser
    from smtpd_fork.net import SocketAddress

__all__ = ["Acceptor"]

log = logging.getLogger("smtpd_fork.listeners")

BURST = 8
"""Clients accepted in one wake-up of one listener; then the sessions have their turn."""

STARVED_SECONDS = 1.0
"""How long accept pauses when descriptors ran out."""

MAX_DISMISSED = 4096
"""Clients of one backlog answered at a stop: what Linux keeps at most (net.core.somaxconn)."""

DEFERRAL_SECONDS = 5.0
"""How often, at most, it is told that clients wait."""

_STARVED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""What accept(2) says when the system is short of something."""

_CLIENT_GONE = frozenset({
    errno.ECONNABORTED, errno.EINTR, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.ENOPROTOOPT,
    errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT,
    errno.ECONNRESET,
})  # fmt: skip
"""What accept(2) says of one client, pending network errors among them: the next may be well."""


class Acceptor:
    """Accepts clients, has the gate judge them, and hands those with a ticket to Preconnect.

    :param listeners: bound and listening
    :param gate: who may come in
    :param when_full: what happens to those for whom there is no room
    :param preconnect: takes the clients that have a ticket; stopped with the acceptor
    :param refuser: answers the others; closed with the acceptor
    :param hostname: names this host in replies
    :param waiting_capacity: how many clients may wait under ``defer:SECONDS``
    :param proxy_trust: who may send PROXY headers, on listeners where those come first
    :param probes: takes the probes of load balancers; stopped with the acceptor
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        gate: Gate,
        when_full: WhenFull,
        *,
        preconnect: Preconnect,
        refuser: Refuser,
        hostname: str,
        waiting_capacity: int,
        proxy_trust: NetworkTable[bool] | None = None,
        probes: Probes | None = None,
    ) -> None:
        self._listeners = deque(listeners)
        self._gate = gate
        self._refuser = refuser
        self._queue = WaitQueue(math.inf, waiting_capacity)
        self._overdue_timer: asyncio.TimerHandle | None = None
        self.change(
            when_full,
            preconnect=preconnect,
            hostname=hostname,
            waiting_capacity=waiting_capacity,
            proxy_trust=proxy_trust,
        )
        self._probes = probes
        self._loop: asyncio.AbstractEventLoop
        self._thread = 0
        self._watching = False
        self._stopped = False
        self._withdrawn = False
        self._spare: Spare | None = None
        self._starved_refused: int | None = None
        self._starved_timer: asyncio.TimerHandle | None = None
        self._deferral_told = -math.inf
        self._missed = 0

    def change(
        self,
        when_full: WhenFull,
        *,
        preconnect: Preconnect,
        hostname: str,
        waiting_capacity: int,
        proxy_trust: NetworkTable[bool] | None,
    ) -> None:
        """Have other settings hold from now on; see the class."""
        self._refuse_when_full = when_full.refuse
        self._queue_clients = when_full.wait is not None
        self._preconnect = preconnect
        self._hostname = hostname
        self._proxy_trust = proxy_trust
        # Under plain defer it is for the one client of the shared gate (see above), and for all
        # who have to make way for exempt clients: who a client is shows only once it is accepted.
        wait = math.inf if when_full.wait is None else when_full.wait
        self._queue.change(wait, waiting_capacity)
        if self._overdue_timer is not None:
            self._overdue_timer.cancel()
            self._overdue_timer = None
        if len(self._queue):
            self._await_overdue()

    # -- life --------------------------------------------------------------------------------

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to accept, on *loop*, from the thread that runs it."""
        self._loop = loop
        self._thread = threading.get_ident()
        self._spare = Spare()
        self._watch()

    def listen_on(self, listeners: Sequence[Listener]) -> int:
        """Accept on *listeners* from now on; those that are not among them are closed.

        :returns: how many clients in the backlogs of those were answered 421
        """
        dropped = [listener for listener in self._listeners if listener not in listeners]
        watching = self._watching
        self._unwatch()
        self._listeners = deque(listeners)
        answered = sum(self._give_up(listener) for listener in dropped)
        if watching:
            self._watch()
        return answered

    def _give_up(self, listener: Listener) -> int:
        # An inherited socket's backlog belongs to whoever inherits it next.
        answered = 0 if listener.inherited else self._dismiss_backlog(listener)
        listener.close()
        return answered

    @property
    def stopped(self) -> bool:
        """Whether nobody is accepted any more, for good."""
        return self._stopped or self._withdrawn

    def withdraw(self) -> None:
        """Accept no more: another process does, on the same sockets, and has their backlog.

        Clients that were accepted go on as before: they wait for a slot, or are in Preconnect.
        """
        self._unwatch()
        self._withdrawn = True
        if self._starved_timer is not None:
            self._starved_timer.cancel()
            self._starved_timer = None
        for listener in self._listeners:
            listener.let_go()
            listener.close()

    @property
    def held(self) -> int:
        """How many clients were accepted and have no session yet."""
        return len(self._queue) + len(self._preconnect)

    def waiting(self) -> int:
        """Return how many clients wait for a slot, or were refused one since this was last asked.

        Where the system does not tell how many there are in a backlog, it is taken for one.
        """
        waiting = len(self._queue) + self._missed
        self._missed = 0
        if not self._watching and not self.stopped:
            for listener in self._listeners:
                queue = backlog_of(listener.sock)
                waiting += 1 if queue is None else queue.waiting
        return waiting

    def stop(self) -> int:
        """Stop for good: whoever still waits is answered 421. The listeners are closed.

        :returns: how many clients were answered
        """
        if self._stopped:
            return 0
        self._stopped = True
        self._unwatch()
        self._gate.forget(self._on_room)
        for timer in (self._starved_timer, self._overdue_timer):
            if timer is not None:
                timer.cancel()
        answered = self._dismiss_waiting() + self._preconnect.stop(self._hostname)
        if self._probes is not None:
            self._probes.stop()
        answered += sum(self._give_up(listener) for listener in self._listeners)
        if self._spare is not None:
            self._spare.close()
        self._refuser.close()
        return answered

    def _dismiss_waiting(self) -> int:
        reply = shutdown_reply(self._hostname)
        answered = 0
        while (waiting := self._queue.pop()) is not None:
            refuse(waiting.sock, b"" if waiting.listener.tls else reply)
            answered += 1
        return answered

    def _dismiss_backlog(self, listener: Listener) -> int:
        """Answer the clients in the kernel's backlog; bounded, as more may be arriving."""
        reply = b"" if listener.tls else shutdown_reply(self._hostname)
        answered = 0
        for _ in range(MAX_DISMISSED):
            try:
                sock, _ = listener.accept()
            except OSError as error:
                if error.errno in _CLIENT_GONE:
                    continue
                break
            refuse(sock, reply)
            answered += 1
        return answered

    # -- watching ----------------------------------------------------------------------------

    def _watch(self) -> None:
        if not self._watching and not self._stopped and not self._withdrawn:
            self._watching = True
            for listener in self._listeners:
                self._loop.add_reader(listener.sock, self._accept_burst, listener)

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            for listener in self._listeners:
                self._loop.remove_reader(listener.sock)

    def _wait_for_room(self) -> None:
        """Leave clients in the backlog until the gate has room."""
        self._unwatch()
        now = self._loop.time()
        if now - self._deferral_told >= DEFERRAL_SECONDS:
            self._deferral_told = now
            log.info("%s; clients wait in the backlog", self._full())
        self._gate.when_room(self._on_room, reserved=True)

    def _on_room(self) -> None:
        """Take the gate's word that there is room; it may come from any thread."""
        if self._stopped:
            return
        try:
            if threading.get_ident() == self._thread:
                self._loop.call_soon(self._reopen)
            else:
                self._loop.call_soon_threadsafe(self._reopen)
        except RuntimeError:  # the loop was closed without a stop: nobody is left to accept
            self._stopped = True

    def _reopen(self) -> None:
        """Let in who waited, and accept again; each time another listener comes first."""
        if self._stopped:
            return
        self._admit_waiting()
        if self._watching or self._withdrawn or self._starved_timer is not None:
            return
        # epoll reports in the order of registration: without turns, and under a constant
        # surplus of clients, the first listener would take every place.
        self._listeners.rotate(-1)
        if all(self._accept_burst(listener) for listener in list(self._listeners)):
            self._watch()

    # -- accepting ---------------------------------------------------------------------------

    def _accept_burst(self, listener: Listener) -> bool:
        """Accept up to BURST clients; return False if accepting has to pause."""
        for _ in range(BURST):
            if not self._may_accept():
                self._wait_for_room()
                return False
            try:
                sock, peer = listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _CLIENT_GONE:
                    continue
                self._starve(error)
                return False
            self._arrived(listener, sock, peer)
        if self._starved_refused is not None:
            self._fed(self._starved_refused)
        return True

    def _may_accept(self) -> bool:
        """Whether a client that arrives now can be answered, one way or another."""
        if self._refuse_when_full:
            return True
        gate = self._gate
        # Who is a probe shows only once it is accepted; the others wait in here then.
        queue_clients = self._queue_clients or self._looks_for_probes
        if gate.reserves:
            return not gate.full or (queue_clients and self._queue.has_space)
        if queue_clients:
            return self._queue.has_space
        return not len(self._queue) and not gate.full

    @property
    def _looks_for_probes(self) -> bool:
        return self._probes is not None and self._probes.networks is not None

    def _arrived(self, listener: Listener, sock: socket.socket, peer: SocketAddress | str) -> None:
        probes = self._probes
        if probes is not None and probes.networks is not None and probes.expect(peer):
            probes.begin(listener, sock, peer, self._judge)
        else:
            self._judge(listener, sock, peer)

    def _judge(self, listener: Listener, sock: socket.socket, peer: SocketAddress | str) -> None:
        if listener.proxy and not self._is_trusted(peer):
            text = "You are no proxy that is trusted here"
            key = source_key(peer) or "unix"
            self._refuser.refuse(listener, sock, Refusal("proxy_trust", key, 1, 0, text=text))
            return
        if self._queue.clients and not self._gate.is_exempt(peer):
            self._wait_or_go(listener, sock, peer)  # behind those who came before
            return
        verdict = self._admit(listener, peer)
        if isinstance(verdict, Ticket):
            self._preconnect.enter(listener, sock, peer, verdict)
        elif isinstance(verdict, Full) and not self._refuse_when_full:
            self._wait_or_go(listener, sock, peer)
        else:
            self._missed += isinstance(verdict, Full)
            self._refuser.refuse(listener, sock, verdict)

    def _admit(self, listener: Listener, peer: SocketAddress | str) -> Verdict:
        # Who stands behind a proxy shows later; until then it counts in all, and nowhere else.
        return self._gate.admit(None if listener.proxy else peer)

    def _is_trusted(self, peer: SocketAddress | str) -> bool:
        """Whether *peer* may say for whom it speaks; who can reach a unix socket may."""
        host = source_key(peer)
        if host is None:
            return True
        return self._proxy_trust is not None and bool(self._proxy_trust.find(number_of(host)))

    def _full(self) -> Full:
        gate = self._gate
        return Full(gate.count + 1, gate.limits.limit_connections, gate.paused)

    # -- clients that wait at most so long ---------------------------------------------------

    def _wait_or_go(
        self, listener: Listener, sock: socket.socket, peer: SocketAddress | str
    ) -> None:
        """Have a client wait; if so many wait that exempt ones would be locked out, refuse it."""
        if self._queue.has_space:
            self._keep_waiting(listener, sock, peer)
        else:
            self._refuser.refuse(listener, sock, self._full())

    def _keep_waiting(
        self, listener: Listener, sock: socket.socket, peer: SocketAddress | str
    ) -> None:
        self._queue.add(listener, sock, peer, self._loop.time())
        self._gate.when_room(self._on_room)
        if self._overdue_timer is None:
            self._await_overdue()

    def _admit_waiting(self) -> None:
        """Let those who waited longest in, as far as there is room."""
        while len(self._queue) and not self._gate.crowded:
            waiting = self._queue.pop()
            assert waiting is not None
            verdict = self._admit(waiting.listener, waiting.peer)
            if isinstance(verdict, Ticket):
                self._preconnect.enter(waiting.listener, waiting.sock, waiting.peer, verdict)
            elif isinstance(verdict, Full):  # another thread was faster
                self._queue.put_back(waiting)
                break
            else:
                self._refuser.refuse(waiting.listener, waiting.sock, verdict)
        if len(self._queue):
            self._gate.when_room(self._on_room)

    def _await_overdue(self) -> None:
        deadline = self._queue.next_deadline
        if deadline is not None and deadline < math.inf:
            self._overdue_timer = self._loop.call_at(deadline, self._refuse_overdue)

    def _refuse_overdue(self) -> None:
        self._overdue_timer = None
        for waiting in self._queue.pop_overdue(self._loop.time()):
            self._refuser.refuse(waiting.listener, waiting.sock, self._full())
        self._await_overdue()
        self._reopen()

    # -- no descriptors left -----------------------------------------------------------------

    def _starve(self, error: OSError) -> None:
        """Answer who is waiting with the spare descriptor, and pause."""
        if self._starved_refused is None:
            self._starved_refused = 0
            log.error("cannot accept: %s; clients are answered 421", os.strerror(error.errno or 0))
        self._unwatch()
        for listener in self._listeners:
            assert self._spare is not None
            answer = partial(self._refuse_starved, listener)
            self._starved_refused += self._spare.refuse(listener.sock, answer, BURST)
        self._starved_timer = self._loop.call_later(STARVED_SECONDS, self._try_again)

    def _refuse_starved(self, listener: Listener, sock: socket.socket) -> None:
        text = "Too many connections, try again later"
        refusal = Refusal("descriptors", "", 0, 0, status="4.3.2", text=text)
        self._refuser.refuse(listener, sock, refusal)

    def _try_again(self) -> None:
        self._starved_timer = None
        self._reopen()

    def _fed(self, refused: int) -> None:
        self._starved_refused = None
        log.warning("accepting again; %d clients were answered 421 meanwhile", refused)
