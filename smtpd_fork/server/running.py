"""Running: the objects that a server has between its start and its end."""

from __future__ import annotations

import asyncio
import logging
import math
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from smtpd_fork.gate import client_reporter
from smtpd_fork.gate.verdict import kick_reply
from smtpd_fork.listeners import Acceptor, Preconnect, Probes, Refuser
from smtpd_fork.server.gate_tarpit import GateTarpit
from smtpd_fork.server.handler_chains import HandlerChains
from smtpd_fork.server.lag import LagMonitor
from smtpd_fork.server.session_factory import IDENT, SessionFactory, buffered_share, shortest_limit
from smtpd_fork.server.sessions import Sessions
from smtpd_fork.server.stress import Stress
from smtpd_fork.smtp import Sweep
from smtpd_fork.units import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from smtpd_fork.config import Config
    from smtpd_fork.dialogue import Budget, Tally
    from smtpd_fork.fleet import Fleet
    from smtpd_fork.gate import Gate, Ticket
    from smtpd_fork.server.effective_settings import EffectiveSettings
    from smtpd_fork.server.tls import ServerTls
    from smtpd_fork.smtp import SMTP

__all__ = ["Running"]

log = logging.getLogger("smtpd_fork.server")

KICKS_PER_ITERATION = 64
"""Sessions that are ended in one iteration of the event loop: that takes a few milliseconds."""

LEAVE_CHECK_SECONDS = 0.5
"""Interval at which a withdrawn server checks for clients that have no session yet."""


class Running:
    """A running server: acceptor, stages before the session, sessions, and their monitoring.

    It must be created in a running event loop. Clients are accepted after :meth:`accept`.

    :param settings: the settings in force
    :param gate: the gate of the server
    :param tls: certificates for new handshakes; :meth:`stop` stops it
    :param fleet: the started fleet of the gate, or None; :meth:`stop` stops it
    :param budget: memory limit for the messages of all sessions
    :param tally: counts the events of sessions, and the event-loop lag
    :param session_class: class of the sessions
    :param session_options: keywords for the class
    :raises TypeError: no session can be created
    """

    def __init__(
        self,
        settings: EffectiveSettings,
        gate: Gate,
        tls: ServerTls,
        fleet: Fleet | None,
        budget: Budget,
        tally: Tally,
        session_class: type[SMTP],
        session_options: Mapping[str, Any],
    ) -> None:
        config = settings.config
        self._loop = loop = asyncio.get_running_loop()
        self._gate = gate
        self._tls = tls
        self._fleet = fleet
        self._budget = budget
        self._tally = tally
        self._session_class = session_class
        self._session_options = session_options
        self._reporter = client_reporter()
        self._chain = settings.chain
        self._chains = HandlerChains()
        self._listeners = list(settings.listeners)  # also closed ones that still have sessions
        self._sweep = Sweep(loop)
        self._tarpit = GateTarpit(gate, config.tarpit)
        factory = self._factory(settings)
        factory.create_test_sessions(settings.listeners)
        self._sweep.set_shortest_limit(shortest_limit(config))
        self._refuser = Refuser(gate, config.hostname)
        self._stress = Stress(gate, self._refuser, config.stress_timeout)
        self.sessions = Sessions(
            factory.session,
            tls.current,
            config.tls_handshake_timeout,
            loop,
            self._refuser,
            self._reporter,
            self._stress,
            self._tarpit.mark,
        )
        self.preconnect = self._make_preconnect(settings)
        self.sessions.judge = self.preconnect.judge
        self.former_preconnects: list[Preconnect] = []
        """Replaced by a reload, but still holding clients; they get no new ones."""
        self.probes = Probes(settings.probe_from, loop, gate, hostname=config.hostname, ident=IDENT)
        self.acceptor = Acceptor(
            settings.listeners,
            gate,
            config,
            loop,
            proxy_trust=settings.proxy_trust,
            xclient_trust=settings.xclient_trust,
            preconnect=self.preconnect,
            refuser=self._refuser,
            probes=self.probes,
        )
        self._sweep.after_check = self._check_stress
        self._lag: LagMonitor | None = None
        self._restart_lag_monitor(settings)

    def _factory(self, settings: EffectiveSettings) -> SessionFactory:
        config = settings.config
        settings.chain.configure(
            seconds=config.handler_timeout,
            hostname=config.hostname,
            authserv_ids=config.authserv_id,
        )
        settings.chain.measure(self._tally)
        return SessionFactory(
            settings.config,
            settings.chain,
            tls=self._tls.current,
            budget=self._budget,
            sweep=self._sweep,
            tally=self._tally,
            reporter=self._reporter,
            session_class=self._session_class,
            options=self._session_options,
            deny=partial(self._gate.denials.add, automatic=True),
            is_exempt=self._gate.is_exempt,
            share_auth_attempt=None if self._fleet is None else self._fleet.share_auth_attempt,
            tarpit=self._tarpit,
            trusted=settings.trusted,
        )

    def _make_preconnect(self, settings: EffectiveSettings) -> Preconnect:
        return Preconnect(
            settings.config,
            self._gate,
            self._loop,
            begin=self.sessions.begin,
            refuse=self._refuser.refuse,
            resolver=settings.resolver,
            reporter=self._reporter,
            fleet=self._fleet,
        )

    def _check_stress(self, now: float) -> None:
        self._stress.check(now, self.sessions, self.acceptor)
        if self._tarpit.waiting and not self._tarpit.capacity():  # few slots are free now
            for connection, _ in self.sessions.all():
                connection.end_delay()

    def _restart_lag_monitor(self, settings: EffectiveSettings) -> None:
        if self._lag is not None:
            self._lag.stop()
            self._lag = None
        if settings.config.max_loop_lag or self._tally.timing:
            limit = settings.config.max_loop_lag or math.inf
            self._lag = LagMonitor(self._loop, self._gate.load, limit, self._tally.lag)
            self._lag.start()

    # -- a reload ------------------------------------------------------------------------------

    def change(self, before: EffectiveSettings, settings: EffectiveSettings) -> None:
        """Replace the settings *before* by *settings*; this must neither wait nor fail."""
        config = settings.config
        self._budget.limit, self._budget.share = config.max_buffered, buffered_share(config)
        self._sweep.set_shortest_limit(shortest_limit(config))
        self._stress.seconds, self._tarpit.seconds = config.stress_timeout, config.tarpit
        self.sessions.change(
            self._factory(settings).session, self._tls.current, config.tls_handshake_timeout
        )
        if settings.chain is not before.chain:
            self._chains.retire(before.chain, self.sessions)
        self._chain = settings.chain
        if not settings.has_same_preconnect(before):
            self.preconnect.stop_zone_checks()
            former = (*self.former_preconnects, self.preconnect)
            self.former_preconnects = [each for each in former if each]
            self.preconnect = self._make_preconnect(settings)
        self._change_fleet(before.config, config)
        self._refuser.hostname = config.hostname
        self.probes.networks, self.probes.hostname = settings.probe_from, config.hostname
        self.acceptor.change(config, settings.proxy_trust, settings.xclient_trust, self.preconnect)
        self.sessions.judge = self.preconnect.judge
        self._restart_lag_monitor(settings)
        self._listen_on(before, settings)

    def _change_fleet(self, before: Config, config: Config) -> None:
        if self._fleet is not None and before.fleet and config.fleet:
            self._fleet.change(
                connections=config.fleet_connections,
                timeout=config.fleet_timeout,
                lease=config.fleet_lease,
                when_down=config.when_fleet_down,
            )

    def _listen_on(self, before: EffectiveSettings, settings: EffectiveSettings) -> None:
        listeners = settings.listeners
        in_use = {ticket.listener for ticket in self._gate.tickets()}
        self._listeners = [each for each in self._listeners if each in in_use]
        self._listeners += [each for each in listeners if each not in self._listeners]
        self.acceptor.listen_on(listeners)
        for listener in before.listeners:
            if listener not in listeners:
                log.info("no longer listening on %s", listener)
        for listener in listeners:
            if listener not in before.listeners:
                log.info("listening on %s", listener.description)

    # -- the end -------------------------------------------------------------------------------

    def accept(self) -> None:
        """Accept clients, also again after ``withdraw(permanently=False)``."""
        self.acceptor.open()
        if self._fleet is not None:
            self._fleet.resume()

    def withdraw(self, *, permanently: bool) -> None:
        """Stop accepting clients; clients that already wait still get a session."""
        self.acceptor.withdraw(permanently=permanently)
        if self._fleet is not None:
            self._fleet.withdraw()

    def _stop_accepting(self) -> int:
        """Stop accepting; answer 421 to all clients without a session, and return their number."""
        if self._fleet is not None:
            self._fleet.withdraw()
        hostname = self._refuser.hostname
        return self.acceptor.stop() + sum(each.stop(hostname) for each in self.former_preconnects)

    async def drain(self) -> None:
        """Stop accepting permanently, and wait until all sessions have ended by themselves."""
        answered = self._stop_accepting()
        log.info("draining: %s", _counts_text(len(self.sessions), answered))
        await self.sessions.drained()

    @property
    def _held(self) -> int:
        """Number of accepted clients that have no session yet."""
        return self.acceptor.held + sum(map(len, self.former_preconnects))

    async def leave(self) -> None:
        """Wait until all sessions, and clients that will still have one, have ended."""
        while len(self.sessions) or self._held:
            await self.sessions.drained()
            if self._held:
                # There is no event for the end of a stage before the session, so poll.
                await asyncio.sleep(LEAVE_CHECK_SECONDS)

    async def stop(self, seconds: float) -> int:
        """Stop accepting, wait for messages in progress, and close all, including the handlers.

        :param seconds: time limit for the messages
        :returns: number of sessions that were cut
        """
        answered = self._stop_accepting()
        if self._lag is not None:
            self._lag.stop()
        log.info("stopping: %s", _counts_text(len(self.sessions), answered))
        cut = await self.sessions.drain(seconds)
        if cut:
            log.warning("%s closed early", counted(cut, "session"))
        await self._sweep.stop()
        await self._tls.stop()
        if self._fleet is not None:
            await self._fleet.stop()
        await self._chains.close(self._chain)
        self._reporter.close()
        return cut

    async def kick(self, chosen: Callable[[Ticket], bool]) -> int:
        """End the sessions that are *chosen*; see :meth:`smtpd_fork.Server.kick`."""
        sessions = self.sessions
        tickets = (t for t in self._gate.tickets() if t.listener in self._listeners and chosen(t))
        count = 0
        while batch := list(islice(tickets, KICKS_PER_ITERATION)):
            holders = {ticket.holder for ticket in batch if not ticket.released}
            sessions.kick(holders, reply := kick_reply(self._refuser.hostname))
            for holder in holders:
                if holder is not None and holder not in sessions:
                    holder.kick(reply)
            count += len(holders)
            await asyncio.sleep(0)
        return count

    # -- consistency ---------------------------------------------------------------------------

    def audit(self) -> list[str]:
        """Compare the gate's ledger with the live connections; return the differences."""
        held = self._gate.tickets()
        wrong = self.sessions.audit(held)
        known = len(self.sessions) + sum(map(len, (self.preconnect, *self.former_preconnects)))
        ours = sum(ticket.listener in self._listeners for ticket in held)
        if ours != known:
            wrong.append(f"the ledger has {ours} connection slots of this server, not {known}")
        return wrong


def _counts_text(sessions: int, refused: int) -> str:
    """Return the numbers of open sessions and of refused waiting clients, as text."""
    return f"{counted(sessions, 'session')} open, {counted(refused, 'waiting client')} refused"
