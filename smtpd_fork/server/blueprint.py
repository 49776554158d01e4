"""Blueprint: what the sessions of a server are made of, from one reload to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smtpd_fork.smtp import SMTP, BareNewline, Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from smtpd_fork.config import Config
    from smtpd_fork.handlers import Chain
    from smtpd_fork.listeners import Listener
    from smtpd_fork.net import Peer
    from smtpd_fork.smtp import Budget, CurrentTls, Sweep, Tally
    from smtpd_fork.smtp.setup import Setup

__all__ = ["IDENT", "Blueprint", "shortest_limit"]

IDENT = "ESMTP smtpd-fork"
"""What the greeting says behind the host's name; no version, which only an attacker needs."""


class Blueprint:
    """Makes sessions, each as the one before it.

    :param config: the settings
    :param chain: the handlers
    :param tls: for STARTTLS; None: it is not offered
    :param budget: how much all sessions may hold of messages
    :param tally: counts what sessions do
    :param sweep: ends sessions whose time is over
    :param session_class: a subclass of :class:`smtpd_fork.smtp.SMTP`
    :param options: keywords for it, which win over the settings
    """

    def __init__(
        self,
        config: Config,
        chain: Chain,
        *,
        tls: CurrentTls | None,
        budget: Budget,
        sweep: Sweep,
        tally: Tally,
        session_class: type[SMTP],
        options: Mapping[str, Any],
    ) -> None:
        self._config = config
        self._chain = chain
        self._tls = tls
        self._sweep = sweep
        self._class = session_class
        self._options = {
            "data_size_limit": config.max_message_size or None,
            "hostname": config.hostname,
            "ident": IDENT,
            "timeout": config.timeout,
            "enhanced": True,
            "enable_SMTPUTF8": True,
            "limits": _limits(config),
            "bare_newline": BareNewline(config.bare_newline),
            "strict_paths": config.strict_paths,
            "budget": budget,
            "tally": tally,
            **options,
        }
        self._setups: dict[bool, Setup] = {}
        self._models: dict[str, SMTP] = {}

    def session(
        self, listener: Listener, peer: Peer, on_close: Callable[[SMTP], None] | None
    ) -> SMTP:
        """Return a session for a client.

        :param on_close: called once, when its connection is closed
        """
        scheme = listener.address.scheme
        model = self._models.get(scheme)
        if model is None:
            if self._class.__init__ is not SMTP.__init__:
                return self._new(listener, peer, on_close)
            # No client ever has the model: what a handler does to a session is that one's.
            model = self._models[scheme] = self._new(listener, None, None)
        return model.another(peer, on_close)

    def _new(self, listener: Listener, peer: Peer, on_close: Callable[[SMTP], None] | None) -> SMTP:
        address = listener.address
        lmtp = address.lmtp
        tls = None if listener.tls or address.no_tls else self._tls
        session = self._class(
            self._chain,
            peer=peer,
            on_close=on_close,
            loop=self._sweep.loop,
            sweep=self._sweep,
            setup=self._setups.get(lmtp),
            lmtp=lmtp,
            tls_context=tls,
            require_starttls=self._config.require_starttls or address.require_tls,
            **self._options,
        )
        self._setups[lmtp] = session.setup  # the first one's serves all
        return session


def shortest_limit(config: Config) -> float:
    """Return the shortest of the time limits that sessions have, in seconds."""
    return min(config.timeout, config.data_timeout, config.handler_timeout, config.session_timeout)


def _limits(config: Config) -> Limits:
    return Limits(
        command_seconds=config.timeout,
        data_seconds=config.data_timeout,
        data_rate=config.min_data_rate,
        handler_seconds=config.handler_timeout,
        handshake_seconds=config.tls_handshake_timeout,
        session_seconds=config.session_timeout,
        errors=config.max_errors,
        recipients=config.max_recipients,
        rejects=config.max_rejects,
    )
