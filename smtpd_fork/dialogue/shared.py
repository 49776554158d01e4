"""Shared: the values that all sessions of a server share, computed once.

aiosmtpd inspects class and handler for every connection, which takes a quarter of a session's time.
"""

from __future__ import annotations

import copy
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import aiosmtpd.smtp
from aiosmtpd.handlers import Sink

from smtpd_fork.dialogue import replies
from smtpd_fork.dialogue.budget import Budget
from smtpd_fork.dialogue.command_table import Guard, Rows, connect_row, rows_of
from smtpd_fork.dialogue.content import BareNewline
from smtpd_fork.dialogue.fast_path import FREQUENT_WORDS, LONGEST
from smtpd_fork.dialogue.introspection import auth_names, call_limits, is_inherited, is_old_ehlo
from smtpd_fork.dialogue.session_commands import extensions
from smtpd_fork.dialogue.tally import Tally
from smtpd_fork.dialogue.tarpit import Tarpit
from smtpd_fork.dialogue.waiting import begins_at_once
from smtpd_fork.gate import Reporter, client_reporter

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Mapping

    from smtpd_fork.dialogue.replies import Text
    from smtpd_fork.gate import TrustedHosts
    from smtpd_fork.peer_address import Peer

__all__ = ["CurrentTls", "Limits", "Shared"]


async def _accept_message(*_: object) -> str:
    """Accept and drop a message, for aiosmtpd's Sink, which has no handle_DATA."""
    return "250 OK"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a session."""

    command_seconds: float = 300.0  # time for the next command (RFC 5321 4.5.3.2.7)
    data_seconds: float = 180.0  # time for the next part of a message (4.5.3.2.5)
    data_rate: float = 100.0  # minimum bytes per second of a message, after a minute
    handler_seconds: float = 300.0  # time for a hook
    handshake_seconds: float = 30.0  # time for a TLS handshake
    session_seconds: float = 3600.0  # time for the whole session; 0 is no limit
    errors: int = 20  # maximum of invalid commands
    recipients: int = 1000  # maximum of recipients of a message (RFC 9422 RCPTMAX)
    hops: int = 0  # maximum of Received fields of a message; 0 is no limit
    rejects: int = 100  # maximum of rejected commands
    line: int = 0  # maximum octets of a line with its line end; 0 is no limit


class CurrentTls:
    """Holds the TLS context for new handshakes.

    Sessions refer to this object instead of the context, so that a STARTTLS after the renewal of a
    certificate uses the new one, also in a session that began before.
    """

    __slots__ = ("context",)

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context

    @classmethod
    def of(cls, context: ssl.SSLContext | CurrentTls | None) -> CurrentTls | None:
        """Return an object that holds *context*, unless it is None or such an object."""
        return context if context is None or isinstance(context, CurrentTls) else cls(context)


SETTINGS = {
    "__ident__": "ident",
    "_auth_callback": "auth_callback",
    "_auth_require_tls": "auth_require_tls",
    "_auth_required": "auth_required",
    "_authenticator": "authenticator",
    "_decode_data": "decode_data",
    "_proxy_timeout": "proxy_seconds",
    "event_handler": "handler",
    **{
        name: name
        for name in (
            *("command_size_limit", "data_size_limit", "enable_SMTPUTF8", "hostname"),
            *("line_length_limit", "local_part_limit", "require_starttls", "tls_context"),
        )
    },
}
"""Attributes of aiosmtpd's class that users read and set, and their names in this class."""


@dataclass(eq=False)
class Shared:
    """The commands, hooks, settings and limits for a session class and a handler."""

    cls: Any  # the class of the sessions
    handler: Any  # the handler, as in aiosmtpd
    _: KW_ONLY
    hostname: str
    ident: str = aiosmtpd.smtp.__ident__
    data_size_limit: int | None = aiosmtpd.smtp.DATA_SIZE_DEFAULT
    enable_SMTPUTF8: bool = False  # noqa: N815 - aiosmtpd's name
    decode_data: bool = False
    tls: CurrentTls | None = None
    require_starttls: bool = False
    auth_required: bool = False
    auth_require_tls: bool = True
    auth_exclude: Iterable[str] = ()  # mechanisms of AUTH that are not offered
    auth_callback: Callable[[str, bytes, bytes], bool] | None = None
    authenticator: Callable[..., Any] | None = None
    command_call_limit: int | dict[str, int] | None = None
    proxy_seconds: float | None = None
    limits: Limits = field(default_factory=Limits)
    strict_paths: bool = False
    bare: BareNewline = BareNewline.ACCEPT  # handling of bare CR and LF
    enhanced: bool = False
    lmtp: bool = False
    budget: Budget = field(default_factory=partial(Budget, 0))
    tally: Tally = field(default_factory=Tally)
    reporter: Reporter = field(default_factory=client_reporter)  # summarizes log lines
    tarpit: Tarpit = field(default_factory=Tarpit)
    deny: Callable[..., object] | None = None  # refuses new clients of a network
    is_exempt: Callable[[Peer], bool] | None = None  # whether a client is in --exempt
    share_auth_attempt: Callable[..., Any] | None = None  # reports an AUTH to all nodes
    trusted: Mapping[str, TrustedHosts] = field(default_factory=dict)  # who may send XCLIENT, ..

    def __post_init__(self) -> None:
        cls = self.cls
        self.require_starttls = self.require_starttls and self.tls is not None
        self.line_length_limit: int = cls.line_length_limit
        self.command_size_limit: int = cls.command_size_limit
        self.local_part_limit: int = cls.local_part_limit
        self._find_hooks()
        self._find_commands()
        self._find_mechanisms()
        self.call_limits, self.call_limit_default = call_limits(self.command_call_limit)
        self._compute()

    def _find_mechanisms(self) -> None:
        if getattr(self.handler, "offers_auth_without_tls", False):
            self.auth_require_tls = False
        checks = bool(self.authenticator or self.auth_callback or "AUTH" in self.hooks)
        if self.authenticator is not None:
            self.auth_callback = None
        names = auth_names(self.cls, self.handler, has_authenticator=checks)
        for name in self.auth_exclude:
            names.pop(name, None)
        self.auth_names = names
        # Many clients use the first mechanism. PLAIN is first, as it needs only one exchange.
        self.auth_offer = " ".join(sorted(names, key=lambda n: (n != "PLAIN", n != "LOGIN", n)))

    def _find_hooks(self) -> None:
        handler = self.handler
        hooks: dict[str, Callable[..., Any]] = {
            name.removeprefix("handle_"): getattr(handler, name)
            for name in dir(handler)
            if name.startswith("handle_") and name != "handle_exception"
        }
        if "DATA" not in hooks and isinstance(handler, Sink):
            hooks["DATA"] = _accept_message
        self.at_once = frozenset(name for name, hook in hooks.items() if begins_at_once(hook))
        """Hooks that are started without a task, which they need only if they wait."""
        self.ehlo_is_old = is_old_ehlo(hooks.get("EHLO"))
        self.hooks = {name: self.tally.timed_hook(name, hook) for name, hook in hooks.items()}
        self.dsn = bool(getattr(handler, "supports_dsn", False))
        """Whether DSN is offered and its parameters are accepted: the handler must support it."""

    def _find_commands(self) -> None:
        cls = self.cls
        self.methods = [n.removeprefix("smtp_") for n in dir(cls) if n.startswith("smtp_")]
        self.builtin = {name for name in self.methods if is_inherited(cls, f"smtp_{name}")}
        """Commands that no subclass overrides."""
        self.subclass_commands = set(self.methods) - self.builtin
        """Commands of a user's subclass: coroutines."""
        self.overrides_envelope = not is_inherited(cls, "_create_envelope")
        self.overrides_session = not is_inherited(cls, "_create_session")
        self.overrides_hook_calls = not is_inherited(cls, "_call_handler_hook")
        """Whether a user's subclass overrides these methods."""
        self.ehlo_hook, self.rset_hook = hasattr(cls, "ehlo_hook"), hasattr(cls, "rset_hook")
        """Whether the class has these hooks of early versions of aiosmtpd."""
        self.chunking = "DATA" in self.builtin or "BDAT" in self.subclass_commands
        """Whether BDAT is offered; not if it would bypass a subclass's smtp_DATA."""
        if not self.chunking:
            self.methods.remove("BDAT")
        binary = bool(getattr(self.handler, "supports_binarymime", False))
        self.binarymime = self.chunking and binary
        """Whether BINARYMIME is offered and accepted: the handler must support it."""

    def _compute(self) -> None:
        """Compute the values that depend on the settings."""
        self.sender_ok = self.encode((250, "2.1.0", "OK"))
        self.recipient_ok = self.encode((250, "2.1.5", "OK"))
        self.bye = self.encode(replies.BYE)
        self.greeting = f"220 {self.hostname} {self.ident}\r\n".encode()
        self.ehlo = {
            tls: "\r\n".join([*extensions(self, tls=tls), "250 HELP\r\n"]).encode()
            for tls in (False, True)
        }
        """The reply to EHLO, without and with TLS."""
        self.rows: dict[Guard, Rows] = {guard: rows_of(self, guard) for guard in Guard}
        """The tables of commands, by the requirement of sessions."""
        self.guarded = self.require_starttls or self.auth_required
        """Whether TLS or AUTH is required."""
        self.open_rows = self.rows[Guard.NOTHING]
        self.connect_row = connect_row(self)
        own, option = self.line_length_limit, self.limits.line
        self.longest_line = min(own, option) if own and option else own or option
        """Maximum length of a line of a message, by the class and by the option; 0: no limit."""
        self.fast = (
            self.call_limits is None
            and {name.encode() for name in self.builtin} >= FREQUENT_WORDS
            and self.command_size_limit >= LONGEST
            and not self.local_part_limit
        )
        """Whether the fast path may be used."""

    def trust(self, trusted: Mapping[str, TrustedHosts]) -> None:
        """Accept XCLIENT and XFORWARD, each from certain hosts."""
        self.trusted = trusted
        self._compute()

    def changed(self, name: str, value: Any) -> Shared:
        """Return a copy with another value of a setting, for one session."""
        other = copy.copy(self)
        setattr(other, name, value)
        other._compute()  # noqa: SLF001 - an object of this class
        return other

    @property
    def tls_context(self) -> ssl.SSLContext | None:
        """The TLS context for STARTTLS; None if STARTTLS is not offered."""
        return None if self.tls is None else self.tls.context

    @tls_context.setter
    def tls_context(self, context: ssl.SSLContext | None) -> None:
        self.tls = CurrentTls.of(context)

    def encode(self, text: Text) -> bytes:
        """Return the bytes of a reply."""
        code, enhanced, words = text
        line = f"{code} {enhanced} {words}\r\n" if self.enhanced else f"{code} {words}\r\n"
        return line.encode("utf-8", "replace")
