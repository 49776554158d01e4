"""Server: the front door as one object, for a daemon and for a program that embeds it."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Any, Self

from smtpd_fork.config import Config, SettingError
from smtpd_fork.gate import GATE_SETTINGS, Gate, limits_of, networks_of
from smtpd_fork.handlers import Chain
from smtpd_fork.listeners import (
    Acceptor,
    Listener,
    Probes,
    Refuser,
    Stages,
    adopt,
    open_listeners,
    parse_address,
    vetting_of,
)
from smtpd_fork.net import describe
from smtpd_fork.server.kick import kick
from smtpd_fork.server.lag import LagMonitor
from smtpd_fork.server.sessions import Sessions
from smtpd_fork.server.tls import load_tls
from smtpd_fork.smtp import SMTP, BareNewline, Budget, Limits, Sweep, Tally

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from smtpd_fork.gate import Limits as GateLimits
    from smtpd_fork.gate import Ticket
    from smtpd_fork.net import Peer, SocketAddress
    from smtpd_fork.smtp.setup import Setup

__all__ = ["Server"]

log = logging.getLogger("smtpd_fork.server")

IDENT = "ESMTP smtpd-fork"
"""What the greeting says behind the host's name; no version, which only an attacker needs."""


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
    :param tls_context: for STARTTLS and TLS, instead of ``tls_cert`` and ``tls_key``
    :param session_class: a subclass of :class:`smtpd_fork.smtp.SMTP`
    :param session_options: keywords for it, as aiosmtpd documents them (``authenticator``, ...)
    :param tally: counts what the sessions do; default: one of its own, that does not look at the
        clock
    :param options: the settings by name, see :class:`smtpd_fork.Config`
    :raises SettingError: a setting is unknown or out of its range
    :raises ConfigError: the TLS files cannot be used
    """

    def __init__(
        self,
        handler: Any,
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
        **options: Any,
    ) -> None:
        if config is not None and options:
            raise TypeError(f"either config or options, not both: {', '.join(options)}")
        both = GATE_SETTINGS & options.keys()
        if gate is not None and both:
            raise TypeError(f"the gate has its own {' and '.join(sorted(both))}")
        self.config = Config.build(options) if config is None else config
        self.chain = _chain(handler)
        self._has_own_gate = gate is None
        self.gate = gate or Gate(limits=limits or limits_of(self.config))
        self._proxy_trust = networks_of("proxy_trust", self.config.proxy_trust)
        self._probe_from = networks_of("probe_from", self.config.probe_from)
        self._vetting = vetting_of(self.config)
        self._tls = tls_context or self._load_tls()
        self._check_tls()
        self._session_class = session_class
        self._budget = Budget(self.config.max_buffered)
        self.tally = tally or Tally()
        self.chain.measure(self.tally.timed_sink)
        self._session_options = self._options(session_options or {})
        self._inherited = list(sockets) if sockets is not None else None
        self._listeners = list(listeners)
        self._acceptor: Acceptor | None = None
        self._stages: Stages | None = None
        self._probes: Probes | None = None
        self._sessions: Sessions | None = None
        self._sweep: Sweep | None = None
        self._setups: dict[bool, Setup] = {}
        self._models: dict[str, SMTP] = {}
        self._lag: LagMonitor | None = None
        self._stopping: asyncio.Task[int] | None = None

    def _load_tls(self) -> ssl.SSLContext | None:
        config = self.config
        return load_tls(config.tls_cert, config.tls_key) if config.tls_cert else None

    def _check_tls(self) -> None:
        if self._tls is not None:
            return
        if self.config.require_starttls:
            reason = "there is no certificate to offer TLS with"
            raise SettingError("require_starttls", True, reason)
        for text in self.config.listen:
            if parse_address(text).tls:
                raise SettingError("listen", text, "there is no certificate for TLS")

    def _options(self, more: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keywords of every session, worked out once."""
        return {
            "data_size_limit": self.config.max_message_size or None,
            "hostname": self.config.hostname,
            "ident": IDENT,
            "timeout": self.config.timeout,
            "enhanced": True,
            "enable_SMTPUTF8": True,
            "limits": _session_limits(self.config),
            "bare_newline": BareNewline(self.config.bare_newline),
            "budget": self._budget,
            "tally": self.tally,
            **more,
        }

    # -- life ----------------------------------------------------------------------------------

    def bind(self) -> None:
        """Bind the sockets and listen: clients may queue up from now on.

        :meth:`start` does it, if it was not done before. A daemon does it before it drops its
        privileges. What the errors are: :func:`smtpd_fork.listeners.open_listeners`.
        """
        if self._listeners:
            return
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

    async def start(self) -> None:
        """Bind what is not bound yet, and accept.

        :raises SmtpdForkError: an address cannot be bound, or a sink cannot be made
        """
        if self._acceptor is not None:
            raise RuntimeError("the server was started before")
        if not self._listeners:
            await asyncio.to_thread(self.bind)
        try:
            await asyncio.to_thread(self.chain.prepare)
        except BaseException:
            self.close()
            raise
        config = self.config
        loop = asyncio.get_running_loop()
        self._sessions = Sessions(self._make_session, self._tls, config.tls_handshake_timeout, loop)
        self._sweep = Sweep(loop)
        self._sweep.look_for(_shortest(config))
        refuser = Refuser(self.gate, config.hostname)
        self._stages = Stages(
            self.gate,
            loop,
            welcome=self._sessions.welcome,
            refuse=refuser.refuse,
            greet_pause=config.greet_pause,
            proxy_timeout=config.proxy_timeout,
            vetting=self._vetting,
        )
        self._probes = Probes(
            self._probe_from, loop, self.gate, hostname=config.hostname, ident=IDENT
        )
        self._acceptor = Acceptor(
            self._listeners,
            self.gate,
            config.when_full,
            stages=self._stages,
            refuser=refuser,
            hostname=config.hostname,
            waiting_capacity=config.backlog,
            proxy_trust=self._proxy_trust,
            probes=self._probes,
        )
        self.gate.watch_buffers(self._budget)
        if config.max_loop_lag or self.tally.timing:
            limit = config.max_loop_lag or math.inf
            self._lag = LagMonitor(loop, self.gate.load, limit, self.tally.lag)
            self._lag.start()
        self._acceptor.start(loop)
        for listener in self._listeners:
            log.info("listening on %s", listener)

    async def reload(self) -> None:
        """Read the files of the lists again, off the loop; the sessions go on.

        A gate that the server was given is its giver's: its limits are left alone.

        :raises SmtpdForkError: a list cannot be read; what held until now goes on to hold
        """
        limits = self.gate.limits
        if self._has_own_gate:
            limits = await asyncio.to_thread(limits_of, self.config)
        self._proxy_trust = await asyncio.to_thread(
            networks_of, "proxy_trust", self.config.proxy_trust
        )
        self._probe_from = await asyncio.to_thread(
            networks_of, "probe_from", self.config.probe_from
        )
        if self._has_own_gate:
            self.gate.limits = limits
        if self._probes is not None:
            self._probes.networks = self._probe_from
        if self._acceptor is not None:
            self._acceptor.trust(self._proxy_trust)

    async def drain(self) -> None:
        """Accept no more, for good, and wait until the last session has ended by itself.

        Clients in the backlog, and those that have no session yet, are answered 421. Follow it
        with :meth:`stop`, which may also come before this has ended.
        """
        if self._acceptor is not None and self._sessions is not None:
            answered = self._acceptor.stop()
            log.info("draining: %d sessions, %d clients sent away", self.sessions, answered)
            await self._sessions.drained()

    async def kick(self, chosen: Callable[[Ticket], bool]) -> int:
        """End the sessions of this server that are *chosen*, also those that have not begun.

        See :func:`smtpd_fork.server.kick.kick`.

        :returns: how many there were
        """
        if self._sessions is None:
            return 0
        return await kick(self.gate, self._listeners, self._sessions, chosen, self.config.hostname)

    async def stop(self, timeout: float | None = None) -> int:  # noqa: ASYNC109 - a grace period
        """Stop: accept no more, let messages in flight finish, and close.

        Clients in the backlog and idle sessions are answered 421. May be called more than once;
        all calls end when the stop does.

        :param timeout: seconds for the messages in flight; default: ``shutdown_timeout``
        :returns: how many sessions had to be cut
        """
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
        if self._acceptor is None or self._sessions is None:
            self.close()
            return 0
        answered = self._acceptor.stop()
        if self._lag is not None:
            self._lag.stop()
        self.gate.forget_buffers(self._budget)
        log.info("stopping: %d sessions, %d clients sent away", len(self._sessions), answered)
        cut = await self._sessions.drain(seconds)
        if cut:
            log.warning("%d sessions were cut", cut)
        if self._sweep is not None:
            await self._sweep.stop()
        await self.chain.close()
        return cut

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
        if self._sessions is None or self._stages is None:
            return []
        held = self.gate.tickets()
        wrong = self._sessions.audit(held)
        known = len(self._sessions) + len(self._stages)
        ours = sum(ticket.listener in self._listeners for ticket in held)
        if ours != known:
            wrong.append(f"{ours} places are held here by the ledger, and {known} in fact")
        return wrong

    @property
    def addresses(self) -> list[Any]:
        """What was really bound, in order: ``(host, port, ...)``, or the path of a unix socket."""
        return [listener.bound for listener in self._listeners]

    @property
    def listeners(self) -> Sequence[Listener]:
        """The bound sockets."""
        return tuple(self._listeners)

    @property
    def sessions(self) -> int:
        """How many sessions this server has now (the gate may count others' as well)."""
        return len(self._sessions) if self._sessions is not None else 0

    def _make_session(
        self, listener: Listener, peer: SocketAddress | str, on_close: Callable[[SMTP], None]
    ) -> SMTP:
        scheme = listener.address.scheme
        model = self._models.get(scheme)
        if model is None:
            if self._session_class.__init__ is not SMTP.__init__:
                return self._new_session(listener, peer, on_close)
            # No client ever has the model: what a handler does to a session is that one's.
            model = self._models[scheme] = self._new_session(listener, None, None)
        return model.another(peer, on_close)

    def _new_session(
        self, listener: Listener, peer: Peer, on_close: Callable[[SMTP], None] | None
    ) -> SMTP:
        assert self._sweep is not None
        lmtp = listener.address.lmtp
        tls = None if listener.tls else self._tls
        session = self._session_class(
            self.chain,
            peer=peer,
            on_close=on_close,
            loop=self._sweep.loop,
            sweep=self._sweep,
            setup=self._setups.get(lmtp),
            lmtp=lmtp,
            tls_context=tls,
            require_starttls=self.config.require_starttls and tls is not None,
            **self._session_options,
        )
        self._setups[lmtp] = session.setup  # the first one's serves all
        return session

    def __repr__(self) -> str:
        places = ", ".join(describe(a) if isinstance(a, tuple) else str(a) for a in self.addresses)
        return f"<Server {places or 'not bound'}>"


def _shortest(config: Config) -> float:
    """Return the shortest of the time limits that sessions have."""
    return min(config.timeout, config.data_timeout, config.handler_timeout, config.session_timeout)


def _session_limits(config: Config) -> Limits:
    return Limits(
        command_seconds=config.timeout,
        data_seconds=config.data_timeout,
        data_rate=config.min_data_rate,
        handler_seconds=config.handler_timeout,
        handshake_seconds=config.tls_handshake_timeout,
        session_seconds=config.session_timeout,
        errors=config.max_errors,
        recipients=config.max_recipients,
    )


def _chain(handler: Any) -> Chain:
    if isinstance(handler, Chain):
        return handler
    return Chain(handler if isinstance(handler, (list, tuple)) else [handler])
