"""SessionFactory: creates the sessions of a server; a reload replaces the factory."""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any

import aiosmtpd.smtp

from smtpd_fork.dialogue import BareNewline, Limits
from smtpd_fork.smtp import SMTP, Connection

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from smtpd_fork.config import Config
    from smtpd_fork.dialogue import Budget, CurrentTls, Shared, Tally
    from smtpd_fork.dialogue.tarpit import Tarpit
    from smtpd_fork.gate import Reporter, TrustedHosts
    from smtpd_fork.handlers import Chain
    from smtpd_fork.listeners import Listener
    from smtpd_fork.peer_address import Peer
    from smtpd_fork.smtp import Sweep

__all__ = ["IDENT", "SessionFactory", "buffered_share", "check_session_class", "shortest_limit"]

IDENT = "ESMTP smtpd-fork"
"""Text of the greeting after the host name; without a version, which would only help attackers."""

CLIENTS_PER_BUDGET = 8
"""By default one client may use an eighth of ``max_buffered``: two messages of the largest size."""

_SERVER_KEYWORDS = {
    "lmtp": "listen=['lmtp:...']",
    "loop": "the running event loop",
    "on_close": "handle_DISCONNECT",
    "peer": "session.peer",
    "require_starttls": "Server(require_starttls=...)",
    "shared": "nothing: it is internal",
    "sweep": "nothing: it is internal",
    "tls_context": "Server(tls_context=...)",
}
"""Keywords of sessions that only the server may set, and what to use instead."""

_METHODS_NEVER_CALLED = {
    "push": "replies are sent in batches, not one by one",
    "check_helo_needed": "set session.host_name in handle_HELO or handle_EHLO",
    "check_auth_needed": "refuse in handle_MAIL",
    "max_command_size_limit": "set command_size_limit",
    "_handle_client": "override smtp_COMMAND methods",
    "_reset_timeout": "set timeout",
    "_timeout_cb": "set timeout",
    "_cb_client_connected": "override connection_made",
    "_auth_interact": "override challenge_auth",
    "_strip_command_keyword": "override smtp_MAIL and smtp_RCPT",
    "_getaddr": "override smtp_MAIL and smtp_RCPT",
    "_getparams": "override smtp_MAIL and smtp_RCPT",
}
"""Methods of aiosmtpd's class that the session does not call by itself, and what to do instead."""


def check_session_class(cls: Any, options: Mapping[str, Any]) -> None:
    """Check that sessions of the class *cls*, with *options*, work here as with aiosmtpd.

    :param options: keywords for the class
    :raises TypeError: the class overrides a method that is never called, or does not accept the
        keywords
    """
    if not (isinstance(cls, type) and issubclass(cls, SMTP)):
        raise TypeError(f"session_class {cls!r} is not a subclass of smtpd_fork.SMTP")
    for name, instead in _METHODS_NEVER_CALLED.items():
        definer = next(base for base in cls.__mro__ if name in vars(base))
        if not _is_library_class(definer):
            text = f"session_class {cls.__name__} overrides {name}, which is never called here"
            raise TypeError(f"{text}: {instead}")
    known, takes_more = _keywords_of(cls)
    for name in options:
        if name in _SERVER_KEYWORDS:
            raise TypeError(
                f"session_options: {name} is set by the server; use {_SERVER_KEYWORDS[name]}"
            )
        alike = get_close_matches(name, known, n=1)
        if name not in known and (alike or not takes_more):
            hint = f"; did you mean {alike[0]}?" if alike else ""
            raise TypeError(f"session_options: {cls.__name__} has no keyword {name}{hint}")
    for name in ("hostname", "ident"):
        if not str(options.get(name) or "").isprintable():
            raise TypeError(f"session_options: {name} {options[name]!r} has control characters")
    if not takes_more and not _SERVER_KEYWORDS.keys() <= known:
        raise TypeError(
            f"session_class {cls.__name__}: its constructor has to accept **kwargs, and to pass "
            "them to super().__init__()"
        )


def _is_library_class(cls: type) -> bool:
    return cls is aiosmtpd.smtp.SMTP or cls.__module__.startswith("smtpd_fork.smtp.")


def _keywords_of(cls: type) -> tuple[set[str], bool]:
    """Return the known keywords of a constructor, and whether a user's class accepts any other."""
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names - {"self", "handler"}, base is SMTP and cls.__init__ is not SMTP.__init__  # type: ignore[misc]  # which constructor it has is the question
    return names - {"self", "handler"}, True


class SessionFactory:
    """Creates sessions with the same settings.

    :param config: the settings
    :param chain: the handlers
    :param tls: for STARTTLS; None: it is not offered
    :param budget: memory limit for the messages of all sessions
    :param tally: counts the events of sessions
    :param reporter: writes log lines about clients
    :param sweep: ends sessions whose deadline has passed
    :param session_class: a subclass of :class:`smtpd_fork.smtp.SMTP`
    :param options: keywords for the class, which override the settings
    :param deny: refuses new clients of a network
    :param is_exempt: returns whether a client is exempt (``--exempt``)
    :param share_auth_attempt: reports an AUTH to the other nodes; None without a fleet
    :param tarpit: decides which replies are delayed
    :param trusted: hosts that may send XCLIENT and XFORWARD, by command
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
        reporter: Reporter,
        session_class: type[SMTP],
        options: Mapping[str, Any],
        deny: Callable[..., object],
        is_exempt: Callable[[Peer], bool],
        share_auth_attempt: Callable[..., Any] | None,
        tarpit: Tarpit,
        trusted: Mapping[str, TrustedHosts],
    ) -> None:
        self._deny, self._is_exempt, self._tarpit = deny, is_exempt, tarpit
        self._share_auth_attempt, self._trusted = share_auth_attempt, trusted
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
            "reporter": reporter,
            **options,
        }
        self._shared: dict[str, Shared] = {}
        self._connection_makers: dict[str, Callable[..., Connection]] = {}

    def session(
        self, listener: Listener, peer: Peer, on_close: Callable[[Connection], None] | None
    ) -> Connection:
        """Return the connection of a new session.

        :param on_close: called once, when the connection is closed
        """
        make = self._connection_makers.get(listener.address.scheme)
        if make is None:
            return self._new(listener, peer, on_close)
        return make(peer=peer, on_close=on_close)

    def create_test_sessions(self, listeners: Sequence[Listener]) -> None:
        """Create a session for each scheme of *listeners*, to find invalid values of keywords.

        aiosmtpd's Controller does the same at its start. Otherwise each client would fail. The
        constructor of a user's class is not called, as it may count clients.
        """
        if self._class.__init__ is not SMTP.__init__:
            return
        for listener in {listener.address.scheme: listener for listener in listeners}.values():
            self._new(listener, None, None)

    def _new(
        self, listener: Listener, peer: Peer, on_close: Callable[[Connection], None] | None
    ) -> Connection:
        address = listener.address
        session = self._class(
            self._chain,
            peer=peer,
            on_close=on_close,
            loop=self._sweep.loop,
            sweep=self._sweep,
            shared=self._shared.get(address.scheme),
            lmtp=address.lmtp,
            tls_context=None if listener.tls or address.no_tls else self._tls,
            require_starttls=self._config.require_starttls or address.require_tls,
            **self._options,
        )
        connection = session.connection
        shared = self._shared[address.scheme] = connection.shared  # all later sessions use it
        shared.deny, shared.is_exempt = self._deny, self._is_exempt
        shared.tarpit, shared.share_auth_attempt = self._tarpit, self._share_auth_attempt
        if self._trusted and not shared.trusted:
            shared.trust(self._trusted)
        if self._class.__init__ is SMTP.__init__:
            observed = self._class is not SMTP
            self._connection_makers[address.scheme] = partial(
                Connection.of, shared, self._sweep.loop, self._sweep, observed=observed
            )
        return connection


def shortest_limit(config: Config) -> float:
    """Return the shortest time limit of sessions, in seconds."""
    stress = config.stress_timeout or config.timeout
    limits = (config.timeout, config.data_timeout, config.handler_timeout, config.session_timeout)
    return min(stress, *limits)


def buffered_share(config: Config) -> int:
    """Return the memory limit for one client's messages beyond their allowances; 0: no limit.

    The default is always enough for a message of the largest size and its envelope. There is no
    limit if the sessions of a client, or the memory of all sessions, are not limited.
    """
    if config.max_buffered_from_ip is not None:
        return config.max_buffered_from_ip
    if not config.max_from_ip:
        return 0
    if not config.max_buffered or not config.max_message_size:
        return config.max_buffered // 2
    return max(config.max_buffered // CLIENTS_PER_BUDGET, config.max_message_size * 9 // 8)


def _limits(config: Config) -> Limits:
    return Limits(
        command_seconds=config.timeout,
        data_seconds=config.data_timeout,
        data_rate=config.min_data_rate,
        handler_seconds=config.handler_timeout,
        handshake_seconds=config.tls_handshake_timeout,
        session_seconds=config.session_timeout,
        errors=config.max_errors,
        hops=config.max_hops,
        recipients=config.max_recipients,
        rejects=config.max_rejects,
        line=config.max_line_length,
    )
