"""Server: the front door as one object, for a daemon and for a program that embeds it."""

from __future__ import annotations

import asyncio
import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Any, Self, Unpack

from smtpd_fork.config import Config
from smtpd_fork.errors import OperatingSystemError
from smtpd_fork.gate import GATE_SETTINGS, Gate, client_reporter, limits_of, networks_of
from smtpd_fork.listeners import (
    Acceptor,
    AcceptorSettings,
    Listener,
    Preconnect,
    Probes,
    Refuser,
    adopt,
    dns_checks_of,
    open_listeners,
)
from smtpd_fork.net import describe
from smtpd_fork.server.blueprint import (
    IDENT,
    Blueprint,
    buffered_share,
    check_session_class,
    shortest_limit,
)
from smtpd_fork.server.handler_chains import HandlerChains, chain_of
from smtpd_fork.server.kick import kick
from smtpd_fork.server.lag import LagMonitor
from smtpd_fork.server.reload_plan import ReloadPlan, same_preconnect
from smtpd_fork.server.sessions import Sessions
from smtpd_fork.server.stress import Stress
from smtpd_fork.server.tls import ServerTls
from smtpd_fork.smtp import SMTP, Budget, Sweep, Tally

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from smtpd_fork.gate import Limits as GateLimits
    from smtpd_fork.gate import Ticket
    from smtpd_fork.handlers import Chain
    from smtpd_fork.handlers.hooks import Handler
    from smtpd_fork.net import SocketAddress
    from smtpd_fork.server.tls import Certificate
    from smtpd_fork.settings import Settings

__all__ = ["Server"]

log = logging.getLogger("smtpd_fork.server")


CLOSE_SECONDS = 5.0
"""How long handlers may take to close, when the last message has ended or was cut."""

LEAVE_SECONDS = 0.5
"""How often a server that leaves looks for clients who have no session yet."""


class Server:
    """An SMTP server behind a gate.

    ::

        async with Server(handler, listen=["127.0.0.1:0"], max_from_ip=10) as server:
            print(server.addresses)
            await something_else()

    It works in a loop that already runs. It takes no signal, touches no logging configuration,
    and cancels no task but its own.

    :param handler: an aiosmtpd handler, or several, in order: the first answer wins
    :param gate: shared with other servers; default: one of its own, by the settings
    :param limits: of its own gate, if whoever makes it has worked them out already
    :param config: the settings, as one object instead of *options*
    :param sockets: bound already, to listen on instead of ``listen`` and ``port``
    :param listeners: the same, opened by :func:`smtpd_fork.listeners.open_listeners`
    :param tls_context: for STARTTLS and TLS, instead of all settings of TLS; it is its giver's to
        renew
    :param session_class: a subclass of :class:`smtpd_fork.smtp.SMTP`
    :param session_options: keywords for it, as aiosmtpd documents them (``authenticator``, ...)
    :param tally: counts what the sessions do; default: one of its own, that does not look at the
        clock
    :param options: the settings by name, see :class:`smtpd_fork.Config`
    :raises SettingError: a setting is unknown or out of its range
    :raises HandlerError: the handler is a class, has no hook, or one that cannot be asked
    :raises TypeError: the session class would not work here, or there is no such session option
    :raises ConfigError: the TLS files cannot be used
    """

    def __init__(
        self,
        handler: Handler | Sequence[Handler],
        *,
        gate: Gate | None = None,
        limits: GateLimits | None = None,
        config: Config | None = None,
        sockets: Sequence[socket.socket] | None = None,
        listeners: Sequence[Listener] = (),
        tls_context: ssl.SSLContext | None = None,
        session_class: type[SMTP] = SMTP,
        session_options: Mapping[str, Any] | None = None,
        tally: Tally | None = None,
        **options: Unpack[Settings],
    ) -> None:
        if config is not None and options:
            raise TypeError(f"either config or options, not both: {', '.join(options)}")
        both = GATE_SETTINGS & options.keys()
        if gate is not None and both:
            raise TypeError(f"the gate has its own {' and '.join(sorted(both))}")
        self.config = Config.build(options) if config is None else config
        check_session_class(session_class, session_options or {})
        self._chains = HandlerChains(chain_of(handler, session_class))
        self._has_own_gate = gate is None
        self.gate = gate or Gate(limits=limits or limits_of(self.config))
        self._proxy_trust = networks_of("proxy_trust", self.config.proxy_trust)
        self._probe_from = networks_of("probe_from", self.config.probe_from)
        self._dns_checks = dns_checks_of(self.config)
        self._tls = ServerTls(tls_context)
        self._tls.use(self._tls.plan(self.config, listeners))
        self._session_class = session_class
        self._budget = Budget(
            self.config.max_buffered, buffered_share(self.config), self.gate.counted_as
        )
        self.tally = tally or Tally()
        self._reporter = client_reporter()
        self.chain.measure(self.tally.timed_sink)
        self._session_options = dict(session_options or {})
        self._inherited = list(sockets) if sockets is not None else None
        self._listeners = list(listeners)
        self._given = bool(listeners)
        self._acceptor: Acceptor | None = None
        self._preconnect: Preconnect | None = None
        self._former: list[Preconnect] = []
        """Those of before a reload, which hold clients still, and get no new ones."""
        self._dropped: list[Listener] = []
        """Listeners that are closed, and have sessions still."""
        self._refuser: Refuser | None = None
        self._reloading = asyncio.Lock()
        self._probes: Probes | None = None
        self._sessions: Sessions | None = None
        self._sweep: Sweep | None = None
        self._lag: LagMonitor | None = None
        self._stress: Stress | None = None
        self._starting = self._stop_wanted = False
        self._stopping: asyncio.Task[int] | None = None

    # -- life ----------------------------------------------------------------------------------

    def bind(self) -> None:
        """Bind the sockets and listen: clients may queue up from now on.

        :meth:`start` does it, if it was not done before. A daemon does it before it drops its
        privileges. What the errors are: :func:`smtpd_fork.listeners.open_listeners`.
        """
        if self._listeners:
            return
        if self._given:
            raise RuntimeError("the listeners of this Server are closed: create a new Server")
        config = self.config
        if self._inherited is not None:
            self._listeners = [adopt(sock, backlog=config.backlog) for sock in self._inherited]
        else:
            self._listeners = open_listeners(
                config.listen,
                config.port,
                backlog=config.backlog,
                socket_mode=config.socket_mode,
            )

    async def start(self, *, accept: bool = True) -> None:
        """Bind what is not bound yet, and accept.

        :param accept: else nobody is accepted until :meth:`accept` is called
        :raises SmtpdForkError: an address cannot be bound, or a sink cannot be made
        :raises RuntimeError: it was started before, or is stopped meanwhile
        """
        if self._starting or self._acceptor is not None:
            raise RuntimeError("this Server was started before: create a new Server to serve again")
        self._starting = True
        self._stop_wanted = False
        config = self.config
        loop = asyncio.get_running_loop()
        self._sweep = Sweep(loop)
        try:
            await self._prepare()
            blueprint = self._blueprint()
            blueprint.try_out(self._listeners)
        except BaseException:
            await self._tls.stop()
            self.close()
            raise
        finally:
            self._starting = False
        self._sweep.look_for(shortest_limit(config))
        self._refuser = Refuser(self.gate, config.hostname)
        self._stress = Stress(self.gate, self._refuser, config.stress_timeout)
        self._sessions = Sessions(
            blueprint.session,
            self._tls.current,
            config.tls_handshake_timeout,
            loop,
            self._refuser,
            self._stress.shorten,
        )
        self._preconnect = self._make_preconnect()
        self._probes = Probes(
            self._probe_from, loop, self.gate, hostname=config.hostname, ident=IDENT
        )
        self._acceptor = Acceptor(
            self._listeners,
            self.gate,
            AcceptorSettings(config.when_full, config.backlog, self._proxy_trust),
            loop,
            preconnect=self._preconnect,
            refuser=self._refuser,
            probes=self._probes,
        )
        self._sweep.then = partial(
            self._stress.look, sessions=self._sessions, acceptor=self._acceptor
        )
        self._watch_lag()
        if accept:
            self.accept()

    async def _prepare(self) -> None:
        """Have all that takes a while."""
        if not self._listeners:
            await asyncio.to_thread(self.bind)
        await asyncio.to_thread(self.chain.prepare)
        await self._tls.start()
        if self._stop_wanted:
            raise RuntimeError("the server was stopped while it started")

    def accept(self) -> None:
        """Begin to accept clients, if :meth:`start` was told not to."""
        assert self._acceptor is not None
        self._acceptor.start()
        for listener in self._listeners:
            log.info("listening on %s", listener, extra={"address": str(listener)})

    def _make_preconnect(self) -> Preconnect:
        assert self._sessions is not None
        assert self._refuser is not None
        config = self.config
        return Preconnect(
            self.gate,
            asyncio.get_running_loop(),
            begin=self._sessions.welcome,
            refuse=self._refuser.refuse,
            greet_pause=config.greet_pause,
            proxy_timeout=config.proxy_timeout,
            dns_checks=self._dns_checks,
            reporter=self._reporter,
        )

    def _watch_lag(self) -> None:
        if self._lag is not None:
            self._lag.stop()
            self._lag = None
        if self.config.max_loop_lag or self.tally.timing:
            limit = self.config.max_loop_lag or math.inf
            loop = asyncio.get_running_loop()
            self._lag = LagMonitor(loop, self.gate.load, limit, self.tally.lag)
            self._lag.start()

    def _blueprint(self) -> Blueprint:
        assert self._sweep is not None
        return Blueprint(
            self.config,
            self.chain,
            tls=self._tls.current,
            budget=self._budget,
            sweep=self._sweep,
            session_class=self._session_class,
            tally=self.tally,
            reporter=self._reporter,
            options=self._session_options,
        )

    async def reload(
        self,
        config: Config | None = None,
        *,
        handler: Handler | Sequence[Handler] | None = None,
    ) -> None:
        """Have other settings hold from now on, or the same ones with their files as they are now.

        Sessions go on with what they began with. Listeners that stay are not touched; new ones
        are opened, the others closed, their backlog answered 421. Sockets that were inherited
        stay, whatever the settings say. A gate that the server was given is its giver's: its
        limits are left alone. A chain that was replaced is closed when its last session has ended.
        TLS files that have changed, and cannot be used, are logged, and the certificates stay: a
        key that only root may read, as it often is, must not keep all else from being read.

        :param config: the settings; default: those that hold
        :param handler: instead of the handler, or the handlers, that new sessions have
        :raises SmtpdForkError: something cannot be had; all that held until now goes on to hold
        """
        async with self._reloading:
            new = self.config if config is None else config
            chain = self.chain if handler is None else chain_of(handler, self._session_class)
            try:
                plan = await asyncio.to_thread(self._plan, new, chain)
                self._check_running(plan)
            except BaseException:
                if chain is not self.chain:
                    await chain.close()
                raise
            before = self._tls.use(plan.rotation)
            self._apply(plan)
            await self._tls.follow(before)

    def _check_running(self, plan: ReloadPlan) -> None:
        if self._acceptor is None or self._acceptor.stopped:
            plan.give_up()
            raise OperatingSystemError("the server is not running")

    def _plan(self, config: Config, chain: Chain) -> ReloadPlan:
        inherited = [listener for listener in self._listeners if listener.inherited]
        return ReloadPlan.make(config, chain, self._listeners, self._tls.plan(config, inherited))

    def _apply(self, plan: ReloadPlan) -> None:
        """Have *plan* hold; nothing in here waits, and nothing fails."""
        assert self._acceptor is not None
        assert self._sessions is not None
        assert self._sweep is not None
        assert self._refuser is not None
        assert self._stress is not None
        assert self._preconnect is not None
        assert self._probes is not None
        before, config = self.config, plan.config
        self.config = config
        self._chains.change(plan.chain, self._sessions)
        self.chain.measure(self.tally.timed_sink)
        self._budget.limit, self._budget.share = config.max_buffered, buffered_share(config)
        self._sweep.look_for(shortest_limit(config))
        self._stress.seconds = config.stress_timeout
        tls = self._tls.current
        self._sessions.change(self._blueprint().session, tls, config.tls_handshake_timeout)
        if self._has_own_gate:
            self.gate.limits = plan.limits
        if not same_preconnect(before, config):
            self._dns_checks = plan.dns_checks
            self._preconnect.retire()
            self._former = [each for each in (*self._former, self._preconnect) if each]
            self._preconnect = self._make_preconnect()
        self._refuser.hostname = config.hostname
        self._probes.networks, self._probes.hostname = plan.probe_from, config.hostname
        self._acceptor.change(
            AcceptorSettings(config.when_full, config.backlog, plan.proxy_trust), self._preconnect
        )
        self._watch_lag()
        self._listen_on(plan)

    def _listen_on(self, plan: ReloadPlan) -> None:
        assert self._acceptor is not None
        dropped = [each for each in self._listeners if each not in plan.listeners]
        self._dropped = [each for each in (*self._dropped, *dropped) if self._is_held_by(each)]
        self._listeners = list(plan.listeners)
        self._acceptor.listen_on(self._listeners)
        for listener in dropped:
            log.info("no longer listening on %s", listener)
        for listener in plan.opened:
            log.info("listening on %s", listener)

    def _is_held_by(self, listener: Listener) -> bool:
        return any(ticket.listener is listener for ticket in self.gate.tickets())

    async def drain(self) -> None:
        """Accept no more, for good, and wait until the last session has ended by itself.

        Clients in the backlog, and those that have no session yet, are answered 421. Follow it
        with :meth:`stop`, which may also come before this has ended.
        """
        if self._acceptor is not None and self._sessions is not None:
            answered = self._acceptor.stop()
            answered += sum(each.stop(self.config.hostname) for each in self._former)
            log.info("draining: %d sessions, %d clients sent away", self.sessions, answered)
            await self._sessions.drained()

    async def kick(self, chosen: Callable[[Ticket], bool]) -> int:
        """End the sessions of this server that are *chosen*, also those that have not begun.

        See :func:`smtpd_fork.server.kick.kick`.

        :returns: how many there were
        """
        if self._sessions is None:
            return 0
        listeners = [*self._listeners, *self._dropped]
        return await kick(self.gate, listeners, self._sessions, chosen, self.config.hostname)

    def withdraw(self) -> None:
        """Accept no more: another process does now, on the same listening sockets.

        Nobody is told anything: who is in stays in, and so does who waits for a place.
        :meth:`leave` ends when they have gone.
        """
        if self._acceptor is not None:
            self._acceptor.withdraw()

    @property
    def _held(self) -> int:
        """Clients that have no session yet."""
        waiting = self._acceptor.held if self._acceptor is not None else 0
        return waiting + sum(map(len, self._former))

    async def leave(self) -> None:
        """Wait until all who were in when the server withdrew have ended, each in its own time."""
        if self._acceptor is None or self._sessions is None:
            return
        while len(self._sessions) or self._held:
            await self._sessions.drained()
            if self._held:
                # Nobody announces the end of a stage; here nothing else is left to do.
                await asyncio.sleep(LEAVE_SECONDS)

    async def stop(self, timeout: float | None = None) -> int:  # noqa: ASYNC109 - a grace period
        """Stop: accept no more, let messages in flight finish, and close.

        Clients in the backlog and idle sessions are answered 421. May be called more than once;
        all calls end when the stop does. A server that was stopped cannot be started again. One
        that has not been started yet can, unless it was given listeners: those are closed.

        :param timeout: seconds for the messages in flight; default: ``shutdown_timeout``
        :returns: how many sessions had to be cut
        """
        if self._acceptor is None:
            self._stop_wanted = True  # of a start that is under way; a later one is another matter
            self.close()
            return 0
        if self._stopping is None:
            seconds = self.config.shutdown_timeout if timeout is None else timeout
            self._stopping = asyncio.get_running_loop().create_task(self._stop(seconds))
        try:
            return await asyncio.shield(self._stopping)
        except asyncio.CancelledError:
            # Whoever waited has no time left, so the sessions have none.
            if self._sessions is not None:
                self._sessions.hurry()
            raise

    async def _stop(self, seconds: float) -> int:
        assert self._acceptor is not None
        assert self._sessions is not None
        answered = self._acceptor.stop()
        answered += sum(each.stop(self.config.hostname) for each in self._former)
        if self._lag is not None:
            self._lag.stop()
        await self._tls.stop()
        log.info("stopping: %d sessions, %d clients sent away", len(self._sessions), answered)
        cut = await self._sessions.drain(seconds)
        if cut:
            log.warning("%d sessions were cut", cut)
        if self._sweep is not None:
            await self._sweep.stop()
        await self._close_handlers()
        self._reporter.close()
        return cut

    async def _close_handlers(self) -> None:
        """Have the handlers finish; one whose thread hangs does not hold up the stop."""
        closing = asyncio.ensure_future(self._chains.close())
        await asyncio.wait([closing], timeout=CLOSE_SECONDS)
        if closing.done():
            closing.result()
        else:
            closing.cancel()
            log.error(
                "the handlers have not closed in %g s, and are left as they are", CLOSE_SECONDS
            )

    async def abort(self) -> None:
        """Stop at once: everything that is open is cut."""
        if self._sessions is not None:
            self._sessions.hurry()
        await self.stop(0)

    def close(self) -> None:
        """Close the sockets of a server that was bound and never started."""
        if self._acceptor is None:
            for listener in self._listeners:
                listener.close()
            self._listeners = []

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    # -- what is -------------------------------------------------------------------------------

    def audit(self) -> list[str]:
        """Compare the gate's ledger with the live connections; return what is wrong.

        There should be nothing, at any time; tests ask after everything that is bad for sessions.
        """
        if self._sessions is None or self._preconnect is None:
            return []
        held = self.gate.tickets()
        wrong = self._sessions.audit(held)
        known = len(self._sessions) + sum(map(len, (self._preconnect, *self._former)))
        listeners = [*self._listeners, *self._dropped]
        ours = sum(ticket.listener in listeners for ticket in held)
        if ours != known:
            wrong.append(f"{ours} places are held here by the ledger, and {known} in fact")
        return wrong

    @property
    def chain(self) -> Chain:
        """The handlers of new sessions, as one."""
        return self._chains.current

    @property
    def addresses(self) -> list[SocketAddress | str]:
        """What was really bound, in order: ``(host, port, ...)``, or the path of a unix socket."""
        return [listener.bound for listener in self._listeners]

    @property
    def port(self) -> int:
        """The port of the first address that has one.

        :raises LookupError: nothing is bound, or unix sockets alone
        """
        for address in self.addresses:
            if isinstance(address, tuple):
                return address[1]
        raise LookupError("no port is bound")

    @property
    def listeners(self) -> Sequence[Listener]:
        """The bound sockets."""
        return tuple(self._listeners)

    @property
    def sessions(self) -> int:
        """How many sessions this server has now (the gate may count others' as well)."""
        return len(self._sessions) if self._sessions is not None else 0

    @property
    def zones(self) -> Mapping[str, bool]:
        """The blocklists of ``dnsbl``, and whether clients are looked up in them.

        They are not in one whose test entries (RFC 5782) show that it does not work.
        """
        return {} if self._preconnect is None else self._preconnect.zones

    @property
    def certificates(self) -> Sequence[Certificate]:
        """What new clients are shown now, in the order of ``tls_cert``; none with a context."""
        return self._tls.certificates

    def __repr__(self) -> str:
        places = ", ".join(describe(a) if isinstance(a, tuple) else str(a) for a in self.addresses)
        return f"<Server {places or 'not bound'}>"
