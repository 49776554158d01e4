"""Acceptor: accept(2) for all listeners of a server, behind one gate.

The event loop watches the listening sockets in :attr:`State.OPEN` only. The gate is checked before
accept(2), so that a client that has to be deferred stays in the backlog. Only a gate that is shared
with another thread can become full in between: then the accepted client waits in a queue, and is
admitted before all others.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from smtpd_fork.gate import Full, Gate, Ticket
from smtpd_fork.gate.verdict import shutdown_reply
from smtpd_fork.listeners.accepted_client import CLIENT_GONE, AcceptedClient, close
from smtpd_fork.listeners.backlog import State, waiting_in
from smtpd_fork.listeners.deadline_queue import DeadlineQueue
from smtpd_fork.listeners.proxy import not_trusted
from smtpd_fork.listeners.spare_descriptor import SpareDescriptor

if TYPE_CHECKING:
    import asyncio

    from smtpd_fork.config import Config
    from smtpd_fork.gate import TrustedHosts, Verdict
    from smtpd_fork.listeners.listener import Listener
    from smtpd_fork.listeners.preconnect import Preconnect
    from smtpd_fork.listeners.probes import Probes
    from smtpd_fork.listeners.refusals import Refuser

__all__ = ["Acceptor"]

log = logging.getLogger("smtpd_fork.listeners")

BURST = 8
"""Clients accepted in one wake-up of one listener; more would delay the sessions."""
STARVED_SECONDS = 1.0
"""How long accepting pauses after file descriptors ran out."""
DEFERRAL_SECONDS = 5.0
"""Minimum time between two log lines that say that clients wait in the backlog."""


class Acceptor:
    """Accepts clients, calls the gate for each, and passes the admitted ones to Preconnect.

    It is created and used in the thread of *loop*. It accepts nothing before :meth:`open`.

    :param listeners: bound and listening
    :param gate: admits clients
    :param config: ``when_full``, and ``backlog``: the maximum of clients in the queue
    :param proxy_trust: hosts that may send PROXY headers, on listeners that expect them
    :param xclient_trust: hosts that may send XCLIENT
    :param preconnect: receives the clients that have a ticket
    :param refuser: answers the other clients
    :param probes: receives the health checks of load balancers; *preconnect*, *refuser* and
        *probes* stop with the acceptor
    :ivar another_process_has_slot: returns whether another process on the same sockets has a free
        connection slot. It is called while the gate is full; if it returns True, new clients stay
        in the backlog for that process until :meth:`reopen` is called
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        gate: Gate,
        config: Config,
        loop: asyncio.AbstractEventLoop,
        *,
        proxy_trust: TrustedHosts,
        xclient_trust: TrustedHosts,
        preconnect: Preconnect,
        refuser: Refuser,
        probes: Probes,
    ) -> None:
        self._listeners = deque(listeners)
        self._gate = gate
        self._loop = loop
        self._thread = threading.get_ident()
        self._refuser = refuser
        self._probes = probes
        self._state = State.CLOSED
        self._spare = SpareDescriptor(refuser)
        self._queue: DeadlineQueue[AcceptedClient] = DeadlineQueue(math.inf, loop, self._on_expired)
        self._deferral_logged = -math.inf
        self._refused_when_full = 0
        self.another_process_has_slot: Callable[[], bool] = lambda: False
        self.change(config, proxy_trust, xclient_trust, preconnect)

    def change(
        self,
        config: Config,
        proxy_trust: TrustedHosts,
        xclient_trust: TrustedHosts,
        preconnect: Preconnect,
    ) -> None:
        """Apply changed settings, also those of the probes; the class describes the parameters."""
        self._when_full = config.when_full
        self._queue_capacity = max(1, config.backlog)
        self._proxy_trust = proxy_trust
        self._xclient_trust = xclient_trust
        self._preconnect = preconnect
        preconnect.trust(xclient_trust)
        # Under plain defer the queue has two uses: the one client that a shared gate could not
        # admit after all, and the clients without a reserved slot (--reserve): whether a client is
        # exempt is known only after accept(2).
        wait = config.when_full.wait
        # Whether a client is a probe is known only after accept(2), too: the others are queued.
        probes = self._probes.networks is not None
        self._queue_clients = wait is not None or probes
        self._on_accepted = self._answer_probe_or_judge if probes else self._judge
        self._queue.change(math.inf if wait is None else wait)

    # -- life cycle ----------------------------------------------------------------------------

    def open(self) -> None:
        """Start or continue to accept clients, unless the acceptor is withdrawn or stopped."""
        if not self.stopped:
            self._state = State.OPEN
            for listener in self._listeners:
                self._loop.add_reader(listener.sock, self._accept_burst, listener)

    def listen_on(self, listeners: Sequence[Listener]) -> None:
        """Accept on *listeners* only; close the others, and answer 421 to their backlogs."""
        dropped = [listener for listener in self._listeners if listener not in listeners]
        was_open = self._state is State.OPEN
        self._close_as(self._state)
        self._listeners = deque(listeners)
        for listener in dropped:
            close(listener, shutdown_reply(self._refuser.hostname))
        if was_open:
            self.open()

    @property
    def stopped(self) -> bool:
        """Whether it is withdrawn or stopped, and can never accept again."""
        return self._state in {State.WITHDRAWN, State.STOPPED}

    def withdraw(self, *, permanently: bool = True) -> None:
        """Stop accepting: another process accepts on the same sockets and owns their backlog.

        Accepted clients are not affected: they wait for a slot or are in Preconnect.

        :param permanently: if False, :meth:`open` continues
        """
        self._close_as(State.WITHDRAWN if permanently else State.PAUSED)
        if not permanently:
            return
        for listener in self._listeners:
            listener.hand_over()
            listener.close()

    @property
    def held(self) -> int:
        """Number of accepted clients that have no session yet."""
        return len(self._queue) + len(self._preconnect)

    def waiting(self) -> int:
        """Return the number of clients that wait for a slot, or were refused since the last call.

        A backlog whose length the system does not report counts as one client.
        """
        waiting = len(self._queue) + self._refused_when_full
        self._refused_when_full = 0
        if self._state in {State.CLOSED, State.STARVED}:
            waiting += waiting_in(listener.sock for listener in self._listeners)
        return waiting

    def stop(self) -> int:
        """Answer 421 to all waiting clients, and close the listeners.

        :returns: the number of clients that were answered
        """
        if self._state is State.STOPPED:
            return 0
        self._close_as(State.STOPPED)
        self._gate.forget(self._on_free_slot)
        hostname, waiting = self._refuser.hostname, list(self._queue)
        reply = shutdown_reply(hostname)
        self._queue.clear()
        for client in waiting:
            client.reply_and_close(reply)
        answered = len(waiting) + self._preconnect.stop(hostname)
        self._probes.stop()
        answered += sum(close(listener, reply) for listener in self._listeners)
        self._spare.close()
        self._refuser.close()
        return answered

    # -- states ------------------------------------------------------------------------------

    def _close_as(self, state: State) -> None:
        """Stop watching the listeners; only STOPPED can follow WITHDRAWN, and nothing STOPPED."""
        if self._state is State.OPEN:
            for listener in self._listeners:
                self._loop.remove_reader(listener.sock)
        if state is State.STOPPED or not self.stopped:
            self._state = state

    def _wait_for_slot(self) -> None:
        """Leave clients in the backlog until the gate has a free slot."""
        self._close_as(State.CLOSED)
        now = self._loop.time()
        if now - self._deferral_logged >= DEFERRAL_SECONDS:
            self._deferral_logged = now
            log.info("%s: new clients wait in the backlog", self._gate.slots.full())
        self._gate.when_room(self._on_free_slot, reserved=True)

    def _on_free_slot(self) -> None:
        """Schedule :meth:`reopen`; the gate calls this when a slot is free, from any thread."""
        if self._state is State.STOPPED:
            return
        try:
            if threading.get_ident() == self._thread:
                self._loop.call_soon(self.reopen)
            else:
                self._loop.call_soon_threadsafe(self.reopen)
        except RuntimeError:  # the loop was closed without a stop
            self._state = State.STOPPED

    def reopen(self) -> None:
        """Admit waiting clients, and accept again, first from a different listener each time."""
        if self._state is not State.STOPPED:
            self._admit_queue()
        if self._state is not State.CLOSED:
            return
        # epoll reports in the order of registration. Without the rotation the first listener would
        # get every free slot while there are always more clients than slots.
        self._listeners.rotate(-1)
        if all(self._accept_burst(listener) for listener in list(self._listeners)):
            self._spare.recovered()
            self.open()

    def _on_descriptors_exhausted(self, error: OSError) -> None:
        """Answer clients by means of the spare descriptor, and pause."""
        if self.stopped:
            return  # the acceptor was stopped within this burst, and the listener is closed
        self._close_as(State.STARVED)
        self._spare.ran_out(error)
        for listener in self._listeners:
            self._spare.answer(listener, BURST)
        self._loop.call_later(STARVED_SECONDS, self._retry_accept)

    def _retry_accept(self) -> None:
        if self._state is State.STARVED:
            self._state = State.CLOSED
            self.reopen()

    # -- accepting ---------------------------------------------------------------------------

    def _accept_burst(self, listener: Listener) -> bool:
        """Accept up to BURST clients; return False if accepting must pause."""
        short = self._gate.free < BURST
        for _ in range(BURST):
            if (short or self._queue) and not self._may_accept():
                self._wait_for_slot()
                return False
            try:
                sock, peer = listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno not in CLIENT_GONE:
                    self._on_descriptors_exhausted(error)
                    return False
            else:
                self._on_accepted(AcceptedClient(listener, sock, peer))
        return True

    def _may_accept(self) -> bool:
        """Whether to accept the next client while slots are scarce or clients are queued."""
        gate = self._gate
        accepts_when_full = self._when_full.refuse or self._queue_clients
        if accepts_when_full and gate.full and self.another_process_has_slot():
            return False
        if self._when_full.refuse:
            return True
        if gate.limits.reserve:
            return not gate.full or (self._queue_clients and self._queue_has_space)
        if self._queue_clients:
            return self._queue_has_space
        return not self._queue and not gate.full

    @property
    def _queue_has_space(self) -> bool:
        return len(self._queue) < self._queue_capacity

    def _answer_probe_or_judge(self, client: AcceptedClient) -> None:
        """Answer a client that is a probe; have the gate evaluate any other client."""
        if self._probes.is_probe(client.peer):
            self._probes.begin(client, self._judge)
        else:
            self._judge(client)

    def _judge(self, client: AcceptedClient) -> None:
        """Have the gate evaluate a client, and act on the verdict."""
        if client.listener.proxy and client.peer not in self._proxy_trust:
            self._refuser.refuse(client, not_trusted(client.peer))
            return
        if self._queue and not self._gate.is_exempt(client.peer):
            self._queue_or_refuse(client)  # clients that arrived earlier are admitted first
            return
        verdict = self._admit(client)
        if isinstance(verdict, Ticket):
            self._preconnect.enter(client, verdict)
        elif isinstance(verdict, Full) and not self._when_full.refuse:
            self._queue_or_refuse(client)
        else:
            self._refused_when_full += isinstance(verdict, Full)
            self._refuser.refuse(client, verdict)

    def _admit(self, client: AcceptedClient) -> Verdict:
        if client.listener.proxy:
            # The PROXY header names the client later; until then only the total is counted.
            return self._gate.admit(None)
        if client.peer in self._xclient_trust:
            return self._gate.admit(client.peer, proxy=True)
        return self._gate.admit(client.peer)

    def _queue_or_refuse(self, client: AcceptedClient) -> None:
        """Add a client to the queue, or refuse it if the queue is full."""
        if self._queue_has_space:
            self._queue.add(client)
            self._gate.when_room(self._on_free_slot)
        else:
            self._refuser.refuse(client, self._gate.slots.full())

    def _admit_queue(self) -> None:
        """Admit clients from the queue, the oldest first, while there are free slots."""
        while self._queue and not self._gate.slots.crowded:
            client = next(iter(self._queue))
            verdict = self._admit(client)
            if isinstance(verdict, Full):  # another thread took the slot
                break
            del self._queue[client]
            if isinstance(verdict, Ticket):
                self._preconnect.enter(client, verdict)
            else:
                self._refuser.refuse(client, verdict)
        if self._queue:
            self._gate.when_room(self._on_free_slot)

    def _on_expired(self, clients: Sequence[AcceptedClient]) -> None:
        for client in clients:
            self._refuser.refuse(client, self._gate.slots.full())
        self.reopen()
