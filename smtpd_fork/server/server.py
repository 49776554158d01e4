"""Server: an SMTP server as one object, for the daemon and for programs that embed it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, Unpack

from smtpd_fork.config import Config
from smtpd_fork.dialogue import Budget, Tally
from smtpd_fork.errors import OperatingSystemError
from smtpd_fork.fleet import fleet_of
from smtpd_fork.gate import Gate
from smtpd_fork.handlers import Chain
from smtpd_fork.peer_address import describe
from smtpd_fork.server.arguments import check_arguments, grace_period
from smtpd_fork.server.effective_settings import EffectiveSettings
from smtpd_fork.server.run_time_changes import RunTimeChanges
from smtpd_fork.server.running import Running
from smtpd_fork.server.session_factory import buffered_share, check_session_class
from smtpd_fork.server.setting_changes import Snapshot, changes_between
from smtpd_fork.server.tls import ServerTls
from smtpd_fork.smtp import SMTP

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Mapping, Sequence

    from smtpd_fork.gate import Limits
    from smtpd_fork.handlers.hooks import Handler
    from smtpd_fork.listeners import Listener
    from smtpd_fork.peer_address import SocketAddress
    from smtpd_fork.server.tls import Certificate
    from smtpd_fork.settings import Settings

__all__ = ["Server"]

log = logging.getLogger("smtpd_fork.server")


class Server(RunTimeChanges):
    """An SMTP server behind a gate.

    ::

        async with Server(handler, listen=["127.0.0.1:0"], max_from_ip=10) as server:
            print(server.addresses)
            await something_else()

    It needs a running event loop. It handles no signals, does not change the logging
    configuration, and cancels only its own tasks.

    :param handler: an aiosmtpd handler, or several, in order: the first answer is used
    :param gate: a gate shared with other servers; default: a gate of its own, from the settings
    :param limits: limits of its own gate, if the caller has read them already
    :param config: the settings, as one object instead of *options*
    :param sockets: bound sockets to listen on, instead of ``listen`` and ``port``
    :param listeners: the same, opened by :func:`smtpd_fork.listeners.open_listeners`
    :param tls_context: used instead of all TLS settings; the caller renews its certificate
    :param session_class: a subclass of :class:`smtpd_fork.smtp.SMTP`
    :param session_options: keywords for the session class, as in aiosmtpd (``authenticator``, ...)
    :param tally: counters of sessions; default: its own counters, without measuring times
    :param options: the settings by name, see :class:`smtpd_fork.Config`
    :raises SettingError: a setting is unknown or out of its range
    :raises HandlerError: the handler is a class, has no hook, or has a hook that is not callable
    :raises TypeError: an argument has another type, the session class does not work here, or a
        session option is unknown
    :raises ConfigError: the TLS files cannot be used
    """

    def __init__(
        self,
        handler: Handler | Sequence[Handler],
        *,
        gate: Gate | None = None,
        limits: Limits | None = None,
        config: Config | None = None,
        sockets: Sequence[socket.socket] | None = None,
        listeners: Sequence[Listener] = (),
        tls_context: ssl.SSLContext | None = None,
        session_class: type[SMTP] = SMTP,
        session_options: Mapping[str, Any] | None = None,
        tally: Tally | None = None,
        **options: Unpack[Settings],
    ) -> None:
        check_arguments(
            options, config=config, gate=gate, limits=limits, tls_context=tls_context, tally=tally
        )
        config = Config.build(options) if config is None else config
        check_session_class(session_class, session_options or {})
        chain = Chain.of(handler, session_class)
        self._has_own_gate = gate is None
        self._settings = EffectiveSettings.read(
            config, chain, limits=gate.limits if gate else limits, listeners=listeners
        )
        self.gate = gate or Gate(limits=self._settings.limits)
        self.fleet = fleet_of(config, self.gate)
        self._tls = ServerTls(tls_context)
        self._tls.use(self._tls.load(config, listeners))
        self._session_class = session_class
        self._budget = Budget(config.max_buffered, buffered_share(config), self.gate.counted_as)
        self.tally = tally or Tally()
        self._session_options = dict(session_options or {})
        self._sockets = None if sockets is None else list(sockets)
        self._had_listeners = bool(listeners)
        self._reloading = asyncio.Lock()
        self._running: Running | None = None
        self._starting = self._stop_wanted = self._in_fleet = False
        self._stopping: asyncio.Task[int] | None = None

    # -- life cycle ----------------------------------------------------------------------------

    def bind(self) -> None:
        """Bind the sockets and listen; clients wait in the backlog from then on.

        :meth:`start` calls it if necessary. A daemon calls it before it drops privileges. The
        errors are those of :func:`smtpd_fork.listeners.open_listeners`.
        """
        if self.listeners:
            return
        if self._had_listeners:
            raise RuntimeError("the listeners of this Server are closed: create a new Server")
        self._settings = self._settings.bind(self._sockets)

    async def start(self, *, accept: bool = True) -> None:
        """Bind the sockets, if :meth:`bind` was not called, and accept clients.

        :param accept: if False, clients wait in the backlog until :meth:`accept` is called
        :raises SmtpdForkError: an address cannot be bound, or a sink cannot be created
        :raises RuntimeError: the server was started before, or is stopped meanwhile
        """
        if self._starting or self._running is not None:
            raise RuntimeError("this Server was started before: create a new Server to serve again")
        self._starting = True
        self._stop_wanted = False
        try:
            await self._prepare()
            self._running = Running(
                *(self._settings, self.gate, self._tls, self.fleet, self._budget, self.tally),
                *(self._session_class, self._session_options),
            )
        except BaseException:
            await self._tls.stop()
            if self.fleet is not None and self._in_fleet:  # other servers may share the fleet
                await self.fleet.stop()
            self.close()
            raise
        finally:
            self._starting = False
        if accept:
            self.accept()

    async def _prepare(self) -> None:
        """Do the steps of a start that take time."""
        if not self.listeners:
            await asyncio.to_thread(self.bind)
        await asyncio.to_thread(self.chain.prepare)
        await self._tls.start()
        if self.fleet is not None:
            self.fleet.counts.measure = self.tally.fleet.observe
            await self.fleet.start()
            self._in_fleet = True
        if self._stop_wanted:
            raise RuntimeError("the server was stopped while it started")

    def accept(self) -> None:
        """Accept clients after ``start(accept=False)`` or :meth:`rest`.

        :raises RuntimeError: the server was not started
        """
        if self._running is None:
            raise RuntimeError("this Server was not started")
        self._running.accept()
        for listener in self.listeners:
            log.info("listening on %s", listener.description, extra={"address": str(listener)})

    async def reload(
        self,
        config: Config | None = None,
        *,
        handler: Handler | Sequence[Handler] | None = None,
    ) -> list[str]:
        """Apply other settings, or read the files of the current settings again.

        Existing sessions keep their settings. Listeners that the settings still name are kept; new
        ones are opened, the others are closed, and the clients in their backlog get 421. Inherited
        sockets are always kept, and so are the limits of a gate that was given to the server.
        Handlers with ``on_reload`` read their files again; a replaced handler is closed when its
        last session has ended. If TLS files have changed and cannot be used, that is logged, and
        the certificates are kept: a key that only root can read must not prevent a reload.

        :param config: the settings; default: the current ones
        :param handler: replaces the handler or handlers for new sessions
        :returns: a line for each change: ``max_from_ip 2 -> 3``, ``deny +3 -1 networks``
        :raises SmtpdForkError: a file cannot be read, or an address cannot be bound; then nothing
            has changed
        :raises TypeError: *config* is not a :class:`smtpd_fork.Config`
        """
        check_arguments({}, config=config)
        async with self._reloading:
            config = self.config if config is None else config
            inherited = [listener for listener in self.listeners if listener.inherited]
            chain = self.chain if handler is None else Chain.of(handler, self._session_class)
            try:
                rotation = await asyncio.to_thread(self._tls.load, config, inherited)
                # A new chain has just read its files.
                read = await asyncio.to_thread(chain.on_reload) if chain is self.chain else []
                settings = await asyncio.to_thread(self._settings.prepare_reload, config, chain)
                running = self._still_running(settings)
            except BaseException:
                if chain is not self.chain:
                    await chain.close()
                raise
            old = self._snapshot()
            replaced = self._tls.use(rotation)
            before, self._settings = self._settings, settings
            if self._has_own_gate:
                self.gate.limits = settings.limits
            running.change(before, settings)
            lines = [line for each in read if (line := each())]
            new = self._snapshot()
            await self._tls.reload_or_watch(replaced)
            await asyncio.to_thread(read.clear)  # freeing a large map takes time
            return lines + await asyncio.to_thread(changes_between, old, new)

    def _snapshot(self) -> Snapshot:
        return Snapshot(self._settings, self.gate.limits, self.certificates)

    def _still_running(self, settings: EffectiveSettings) -> Running:
        if self._running is None or self._running.acceptor.stopped:
            for listener in set(settings.listeners).difference(self.listeners):
                listener.close()
            raise OperatingSystemError("the server is not running")
        return self._running

    async def drain(self) -> None:
        """Stop accepting permanently, and wait until all sessions have ended by themselves.

        Clients in the backlog, and clients without a session, get 421. Call :meth:`stop`
        afterwards; it may also be called before this method returns.
        """
        if self._running is not None:
            await self._running.drain()

    async def stop(self, timeout: float | None = None) -> int:  # noqa: ASYNC109 - a grace period
        """Stop accepting, wait for messages in progress, and close.

        Clients in the backlog and idle sessions get 421. The method may be called more than once;
        all calls return when the stop is complete. A stopped server cannot be started again. A
        server that was never started can still be started, unless it was given listeners, which
        are closed.

        :param timeout: seconds for the messages in progress; default: ``shutdown_timeout``
        :returns: the number of sessions that were closed before they ended
        """
        running = self._running
        if running is None:
            self._stop_wanted = True  # for a start in progress; a later start resets it
            self.close()
            return 0
        if self._stopping is None:
            seconds = grace_period(timeout, self.config.shutdown_timeout)
            self._stopping = asyncio.get_running_loop().create_task(running.stop(seconds))
        try:
            return await asyncio.shield(self._stopping)
        except asyncio.CancelledError:
            running.sessions.end_grace_period()  # the caller's time limit has passed
            raise

    async def abort(self) -> None:
        """Stop immediately: cut all sessions."""
        if self._running is not None:
            self._running.sessions.end_grace_period()
        await self.stop(0)

    def close(self) -> None:
        """Close the sockets of a server that was bound but not started."""
        if self._running is None:
            for listener in self.listeners:
                listener.close()
            self._settings = replace(self._settings, listeners=())

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def audit(self) -> list[str]:
        """Compare the gate's ledger with the live connections; return the differences.

        The list should always be empty; tests check it after failures of all kinds.
        """
        return [] if self._running is None else self._running.audit()

    @property
    def config(self) -> Config:
        """The settings in force."""
        return self._settings.config

    @property
    def chain(self) -> Chain:
        """The handlers of new sessions, as one chain."""
        return self._settings.chain

    @property
    def addresses(self) -> list[SocketAddress | str]:
        """The bound addresses, in order: ``(host, port, ...)``, or the path of a unix socket."""
        return [listener.bound for listener in self.listeners]

    @property
    def port(self) -> int:
        """The port of the first address that has one.

        :raises LookupError: nothing is bound, or only unix sockets
        """
        for address in self.addresses:
            if isinstance(address, tuple):
                return address[1]
        raise LookupError("no port is bound")

    @property
    def listeners(self) -> Sequence[Listener]:
        """The bound sockets."""
        return self._settings.listeners

    @property
    def sessions(self) -> int:
        """Number of current sessions of this server (a shared gate counts those of all servers)."""
        return 0 if self._running is None else len(self._running.sessions)

    @property
    def zones(self) -> Mapping[str, bool]:
        """Maps each blocklist of ``dnsbl`` to whether clients are looked up in it.

        A list whose test entries (RFC 5782) show that it does not work is not used.
        """
        return {} if self._running is None else self._running.preconnect.zones

    @property
    def certificates(self) -> Sequence[Certificate]:
        """The certificates for new handshakes, as in ``tls_cert``; empty with ``tls_context``."""
        return self._tls.certificates

    def __repr__(self) -> str:
        places = ", ".join(describe(a) if isinstance(a, tuple) else str(a) for a in self.addresses)
        return f"<Server {places or 'not bound'}>"
