"""Acceptor: accept(2) for all listeners of a server, behind one gate.

The listening sockets are watched in :attr:`State.OPEN` only. The gate is asked before accept(2), so
no client is accepted that would have to be deferred. Only a gate that is shared with another thread
can fill up in between: that client is the first to be admitted.
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
from smtpd_fork.listeners.spare import Spare

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
"""Clients accepted in one wake-up of one listener; then the sessions have their turn."""
STARVED_SECONDS = 1.0
"""How long accept pauses when descriptors ran out."""
DEFERRAL_SECONDS = 5.0
"""How often, at most, it is logged that clients wait."""


class Acceptor:
    """Accepts clients, has the gate judge them, and hands those with a ticket to Preconnect.

    Made and used in the thread of *loop*; it begins with :meth:`open`.

    :param listeners: bound and listening
    :param gate: admits clients
    :param config: ``when_full``, and ``backlog``: how many may wait under ``defer:SECONDS``
    :param proxy_trust: who may send PROXY headers, on listeners where those come first
    :param xclient_trust: who may send XCLIENT
    :param preconnect: takes the clients that have a ticket
    :param refuser: answers the others
    :param probes: takes the probes of load balancers; all three stop with the acceptor
    :ivar slot_elsewhere: whether another process on the same sockets has a free slot; asked while
        the gate is full: then clients are left to it, and :meth:`reopen` ends that
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
        self._spare = Spare(refuser)
        self._queue: DeadlineQueue[AcceptedClient] = DeadlineQueue(math.inf, loop, self._overdue)
        self._deferral_told = -math.inf
        self._missed = 0
        self.slot_elsewhere: Callable[[], bool] = lambda: False
        self.change(config, proxy_trust, xclient_trust, preconnect)

    def change(
        self,
        config: Config,
        proxy_trust: TrustedHosts,
        xclient_trust: TrustedHosts,
        preconnect: Preconnect,
    ) -> None:
        """Have other settings hold from now on, and the probes' own; see the class."""
        self._when_full = config.when_full
        self._queue_capacity = max(1, config.backlog)
        self._proxy_trust = proxy_trust
        self._xclient_trust = xclient_trust
        self._preconnect = preconnect
        preconnect.trust(xclient_trust)
        # Under plain defer the queue is for that one client of a shared gate, and for all that make
        # way for exempt clients: which they are shows only once they are accepted.
        wait = config.when_full.wait
        # What is a probe shows only once it is accepted; the others wait in the queue then.
        probes = self._probes.networks is not None
        self._queue_clients = wait is not None or probes
        self._arrived = self._answer_or_judge if probes else self._judge
        self._queue.change(math.inf if wait is None else wait)

    # -- life --------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin to accept; also again, if it has not withdrawn for good."""
        if not self.stopped:
            self._state = State.OPEN
            for listener in self._listeners:
                self._loop.add_reader(listener.sock, self._accept_burst, listener)

    def listen_on(self, listeners: Sequence[Listener]) -> None:
        """Accept on *listeners* from now on; the others are closed, their backlog answered 421."""
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
        """Whether it accepts no more, for good."""
        return self._state in {State.WITHDRAWN, State.STOPPED}

    def withdraw(self, *, for_good: bool = True) -> None:
        """Accept no more: another process does, on the same sockets, and has their backlog.

        Clients that were accepted go on as before: they wait for a slot, or are in Preconnect.

        :param for_good: False: until :meth:`open`
        """
        self._close_as(State.WITHDRAWN if for_good else State.RESTING)
        if not for_good:
            return
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
        if self._state in {State.CLOSED, State.STARVED}:
            waiting += waiting_in(listener.sock for listener in self._listeners)
        return waiting

    def stop(self) -> int:
        """Stop for good: clients that still wait get 421. The listeners are closed.

        :returns: how many clients were answered
        """
        if self._state is State.STOPPED:
            return 0
        self._close_as(State.STOPPED)
        self._gate.forget(self._on_free_slot)
        hostname, waiting = self._refuser.hostname, list(self._queue)
        reply = shutdown_reply(hostname)
        self._queue.clear()
        for client in waiting:
            client.dismiss(reply)
        answered = len(waiting) + self._preconnect.stop(hostname)
        self._probes.stop()
        answered += sum(close(listener, reply) for listener in self._listeners)
        self._spare.close()
        self._refuser.close()
        return answered

    # -- the states --------------------------------------------------------------------------

    def _close_as(self, state: State) -> None:
        """Watch the listeners no longer; WITHDRAWN and STOPPED are for good."""
        if self._state is State.OPEN:
            for listener in self._listeners:
                self._loop.remove_reader(listener.sock)
        if state is State.STOPPED or not self.stopped:
            self._state = state

    def _wait_for_slot(self) -> None:
        """Leave clients in the backlog until the gate has a free slot."""
        self._close_as(State.CLOSED)
        now = self._loop.time()
        if now - self._deferral_told >= DEFERRAL_SECONDS:
            self._deferral_told = now
            log.info("%s: new clients wait in the backlog", self._gate.slots.full())
        self._gate.when_room(self._on_free_slot, reserved=True)

    def _on_free_slot(self) -> None:
        """Act on a free slot; the gate calls this from any thread."""
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
        """Admit clients that waited, and accept again; each time another listener comes first."""
        if self._state is not State.STOPPED:
            self._admit_queue()
        if self._state is not State.CLOSED:
            return
        # epoll reports in the order of registration: without turns, and under a constant
        # surplus of clients, the first listener would take every slot.
        self._listeners.rotate(-1)
        if all(self._accept_burst(listener) for listener in list(self._listeners)):
            self._spare.recovered()
            self.open()

    def _starve(self, error: OSError) -> None:
        """Answer clients with the spare descriptor, and pause."""
        if self.stopped:
            return  # it was stopped within this burst, and the listener is closed
        self._close_as(State.STARVED)
        self._spare.ran_out(error)
        for listener in self._listeners:
            self._spare.answer(listener, BURST)
        self._loop.call_later(STARVED_SECONDS, self._try_again)

    def _try_again(self) -> None:
        if self._state is State.STARVED:
            self._state = State.CLOSED
            self.reopen()

    # -- accepting ---------------------------------------------------------------------------

    def _accept_burst(self, listener: Listener) -> bool:
        """Accept up to BURST clients; return False if accepting has to pause."""
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
                    self._starve(error)
                    return False
            else:
                self._arrived(AcceptedClient(listener, sock, peer))
        return True

    def _may_accept(self) -> bool:
        """Whether a client can be answered that arrives while slots are short or clients wait."""
        gate = self._gate
        if (self._when_full.refuse or self._queue_clients) and gate.full and self.slot_elsewhere():
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

    def _answer_or_judge(self, client: AcceptedClient) -> None:
        """Answer a probe; another client is judged."""
        if self._probes.expect(client.peer):
            self._probes.begin(client, self._judge)
        else:
            self._judge(client)

    def _judge(self, client: AcceptedClient) -> None:
        """Have the gate judge a client, and act on the verdict."""
        if client.listener.proxy and client.peer not in self._proxy_trust:
            self._refuser.refuse(client, not_trusted(client.peer))
            return
        if self._queue and not self._gate.is_exempt(client.peer):
            self._wait_or_go(client)  # behind those that came before
            return
        verdict = self._admit(client)
        if isinstance(verdict, Ticket):
            self._preconnect.enter(client, verdict)
        elif isinstance(verdict, Full) and not self._when_full.refuse:
            self._wait_or_go(client)
        else:
            self._missed += isinstance(verdict, Full)
            self._refuser.refuse(client, verdict)

    def _admit(self, client: AcceptedClient) -> Verdict:
        if client.listener.proxy:
            return self._gate.admit(None)  # it is known later; until then it counts in all alone
        if client.peer in self._xclient_trust:
            return self._gate.admit(client.peer, proxy=True)
        return self._gate.admit(client.peer)

    def _wait_or_go(self, client: AcceptedClient) -> None:
        """Have a client wait; if so many wait that exempt ones would be locked out, refuse it."""
        if self._queue_has_space:
            self._queue.add(client)
            self._gate.when_room(self._on_free_slot)
        else:
            self._refuser.refuse(client, self._gate.slots.full())

    def _admit_queue(self) -> None:
        """Admit the clients that waited longest, as far as there are slots."""
        while self._queue and not self._gate.slots.crowded:
            client = next(iter(self._queue))
            verdict = self._admit(client)
            if isinstance(verdict, Full):  # another thread was faster
                break
            del self._queue[client]
            if isinstance(verdict, Ticket):
                self._preconnect.enter(client, verdict)
            else:
                self._refuser.refuse(client, verdict)
        if self._queue:
            self._gate.when_room(self._on_free_slot)

    def _overdue(self, clients: Sequence[AcceptedClient]) -> None:
        for client in clients:
            self._refuser.refuse(client, self._gate.slots.full())
        self.reopen()
