"""Config: the settings, typed, with their defaults and where those come from.

The names are the options' names. :meth:`Config.build` takes them as an embedder, an environment
or a file would write them (``"25M"``, ``"defer:5"``, one port or several), and every fault names
the setting, the value and what was expected.
"""

from __future__ import annotations

import re
import resource
import socket
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    Self,
    TypeAlias,
    get_args,
    get_type_hints,
)

import msgspec
from msgspec import Meta

from smtpd_fork.errors import UsageError
from smtpd_fork.units import parse_duration, parse_mode, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "LIMIT_CONNECTIONS",
    "MAX_FROM_IP",
    "READERS",
    "Config",
    "DaemonConfig",
    "SettingError",
    "WhenFull",
    "default_limit_connections",
]

PORT = 2525
"""qpsmtpd-forkserver(8)'s; a port that needs no privileges."""

LIMIT_CONNECTIONS = 1000
"""Sessions at once; a session is a few KiB here, where qpsmtpd forks a process (its figure: 15)."""

MAX_FROM_IP = 50
"""Sessions at once from one address; Postfix's smtpd_client_connection_count_limit."""

MAX_FROM_NET = ("25%/24", "25%/48")
"""Shares of the sessions, for networks that one customer of a provider has: a /24 is the smallest
that is routed by itself (RFC 7454 6.1.3), a /48 is the most that a site gets (RFC 6177). A quarter
each: one or two of them are no emergency, and none shuts out the others."""

IPV6_PREFIX = 64
"""Bits of the network that a source of IPv6 is: whoever has one address has its /64 (RFC 6177)."""

BACKLOG = 1024
"""Clients that the kernel keeps waiting; the system's own maximum is often 4096."""

MAX_MESSAGE_SIZE = 1 << 25
"""32 MiB, aiosmtpd's DATA_SIZE_DEFAULT."""

TIMEOUT_SECONDS = 300.0
"""RFC 5321 4.5.3.2.7: a server waits at least five minutes for the next command."""

STRESS_SECONDS = 10.0
"""Postfix's smtpd_timeout, and smtpd_starttls_timeout, under stress."""

DATA_TIMEOUT_SECONDS = 180.0
"""RFC 5321 4.5.3.2.5: three minutes for a part of a message."""

MIN_DATA_RATE = 100
"""Bytes a second: a modem of 1985 is faster, a client that only wants to stay is not."""

HANDLER_TIMEOUT_SECONDS = 300.0
"""RFC 5321 4.5.3.2.6 has clients wait ten minutes for the reply to a message."""

SESSION_TIMEOUT_SECONDS = 3600.0
"""Nobody has mail for an hour without a pause; who stays longer takes somebody's place."""

MAX_ERRORS = 20
"""Postfix's smtpd_hard_error_limit."""

MAX_REJECTS = 100
"""Five times MAX_ERRORS: a mailing list has dead addresses, and a message may have a hundred
recipients at least (RFC 5321 4.5.3.1.8)."""

MAX_RECIPIENTS = 1000
"""Postfix's smtpd_recipient_limit; RFC 5321 4.5.3.1.8 wants 100 at least."""

MAX_BUFFERED = 1 << 29
"""512 MiB: sixteen messages of the largest size at once."""

SHUTDOWN_TIMEOUT_SECONDS = 30.0
"""Time for messages in flight at a stop; Kubernetes' grace period, and a third of systemd's."""

TLS_HANDSHAKE_SECONDS = 30.0
"""Time for a TLS handshake; half of asyncio's, as a stalled one holds a place in the count."""

TLS_FAILURE_RATE = "300/m"
"""Failed handshakes of one client: half of one takes the processor about a millisecond, so that is
half a per cent of it; and all that come through one address (a bridge's gateway) do not fail as
often. Postfix has the same for all new handshakes (smtpd_client_new_tls_session_rate_limit)."""

DNS_SECONDS = 5.0
"""Time for a question to the DNS; what a resolver takes that is not well (RFC 1035 7.2)."""

PROXY_SECONDS = 5.0
"""Time for a PROXY header: a proxy sends it with its first packet."""

SOCKET_MODE = 0o660
"""Of a unix socket's path: its owner and group may connect."""

RESERVED_DESCRIPTORS = 64
"""Kept out of the default limit: listeners, log, Maildir writers, whatever a handler opens."""

LONGEST_SECONDS = 7 * 86400.0
"""Of any time limit; past it a typing error is likelier than an intention."""

LONGEST_GREET_PAUSE = 240.0
"""RFC 5321 4.5.3.2.1: clients wait five minutes for the greeting, and this is to be less."""

_HOSTNAME = re.compile(r"[!-~]{1,255}")


class SettingError(UsageError):
    """A setting whose value cannot be read or is out of its range (64).

    :ivar setting: the setting's name
    :ivar value: what it was given
    :ivar reason: what is wrong with it
    """

    def __init__(self, setting: str, value: object, reason: str) -> None:
        super().__init__(f"{setting} {value!r}: {reason}")
        self.setting = setting
        self.value = value
        self.reason = reason


@dataclass(frozen=True, slots=True)
class WhenFull:
    """What happens to clients for whom there is no room.

    :ivar refuse: answer them 421 at once
    :ivar wait: if they are not refused at once: after how many seconds; None is never
    """

    refuse: bool = False
    wait: float | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``defer``, ``refuse`` or ``defer:SECONDS``.

        :raises ValueError: *text* is none of them
        """
        if text == "refuse":
            return cls(refuse=True)
        word, colon, seconds = text.partition(":")
        if word != "defer":
            raise ValueError("expected defer, refuse or defer:SECONDS")
        if not colon:
            return cls()
        wait = parse_duration(seconds)
        if not 0 < wait <= LONGEST_SECONDS:
            raise ValueError("the seconds after defer: must be more than 0")
        return cls(wait=wait)

    def __str__(self) -> str:
        if self.refuse:
            return "refuse"
        return "defer" if self.wait is None else f"defer:{self.wait:g}"


def default_limit_connections() -> int:
    """Return 1000, or what fits where RLIMIT_NOFILE (getrlimit(2), the soft limit) is small."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return LIMIT_CONNECTIONS
    return max(1, min(LIMIT_CONNECTIONS, soft - min(RESERVED_DESCRIPTORS, soft // 2)))


def _system_name() -> str:
    return socket.gethostname() or "localhost"


Port: TypeAlias = Annotated[int, Meta(ge=0, le=65535)]
Count: TypeAlias = Annotated[int, Meta(ge=1, le=1_000_000)]
CountOrNone: TypeAlias = Annotated[int, Meta(ge=0, le=1_000_000)]
Text: TypeAlias = Annotated[str, Meta(min_length=1)]
Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=LONGEST_SECONDS)]

READERS: dict[str, Callable[[str], object]] = {
    "data_timeout": parse_duration,
    "dns_timeout": parse_duration,
    "greet_pause": parse_duration,
    "handler_timeout": parse_duration,
    "max_buffered": parse_size,
    "max_buffered_from_ip": parse_size,
    "max_line_length": parse_size,
    "max_loop_lag": parse_duration,
    "proxy_timeout": parse_duration,
    "max_message_size": parse_size,
    "session_timeout": parse_duration,
    "shutdown_timeout": parse_duration,
    "socket_mode": parse_mode,
    "stress_timeout": parse_duration,
    "timeout": parse_duration,
    "tls_handshake_timeout": parse_duration,
    "when_full": WhenFull.parse,
}
"""Settings that people write with units or words."""

_LISTS = {
    *("allow", "deny", "dnsbl", "exempt", "handler", "listen"),
    *("max_from_net", "port", "probe_from", "proxy_trust", "rate", "rate_net"),
    *("tls_cert", "tls_key"),
}
"""Settings of which there may be several; one alone need not be in a list."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of a server. Make one with :meth:`build`, which checks them.

    :ivar listen: addresses, as ``-l`` takes them; empty: all interfaces, IPv4 and IPv6
    :ivar port: for the addresses that name none; 0 takes a free one
    :ivar backlog: of listen(2); below 0 counts as 0, above the system's maximum as the maximum
    :ivar socket_mode: file mode of unix sockets
    :ivar limit_connections: sessions at once
    :ivar max_from_ip: sessions at once from one source; 0 is no limit
    :ivar ipv6_prefix: bits of the network that is one source of IPv6
    :ivar max_from_net: sessions at once from one network, each ``N/PREFIX``, or ``N%/PREFIX``,
        which is a share of ``limit_connections``; ``0``: no limit
    :ivar rate: new sessions from one source in a time, each ``N/PERIOD``
    :ivar rate_net: new sessions from one network in a time, each ``N/PERIOD/PREFIX``
    :ivar fair_share: while room is short, nobody holds more than a fair part
    :ivar allow: networks, or files of them, that are not denied
    :ivar deny: networks, or files of them, that are
    :ivar exempt: networks, or files of them, that rules about sources leave alone
    :ivar reserve: so many places are for exempt clients alone
    :ivar greet_pause: seconds that clients wait for the greeting; who talks before it is refused
    :ivar proxy_trust: networks, or files of them, that may send PROXY headers
    :ivar proxy_timeout: seconds that a PROXY header may take
    :ivar probe_from: networks, or files of them, whose connections are probes: no sessions
    :ivar dnsbl: blocklists, each ``ZONE[=CODES][=WEIGHT]``, see :mod:`smtpd_fork.listeners.dnsbl`
    :ivar dnsbl_threshold: the weight of all that list a client, from which on it is refused
    :ivar rdns: ask for the clients' names
    :ivar dns_timeout: seconds that a question may take
    :ivar dns_server: whom to ask, ``ADDRESS`` or ``ADDRESS:PORT``; default: the system's
    :ivar max_loop_lag: seconds by which the loop may be late, before nobody comes in; 0: any
    :ivar refuse_first: so many of the first clients are refused, for rehearsal
    :ivar refuse_every: and each so-manyth of those after them
    :ivar when_full: what happens to the others
    :ivar hostname: names this host in replies and headers; default: the system's name
    :ivar tls_cert: PEM files, each with a certificate chain; STARTTLS is offered if there is one.
        Clients get the one that has the name they ask for, or the first
    :ivar tls_key: PEM files of their keys, in the same order; default: in the same files
    :ivar tls_min_version: the oldest TLS that is spoken
    :ivar tls_client_ca: PEM file of authorities; clients are asked for a certificate of theirs
    :ivar tls_client_verify: what becomes of clients that have none
    :ivar require_starttls: refuse mail over a connection that is not encrypted (RFC 3207 4)
    :ivar max_message_size: bytes; 0 is no limit
    :ivar timeout: seconds until a client's next command begins; and for all of a command once its
        first byte has come, where 60 s are the most
    :ivar stress_timeout: the same, and for the next part of a message or a TLS handshake, while
        three quarters of the slots are in use; and how long a client may make no progress while
        others wait for one. 0: none of it
    :ivar data_timeout: seconds that a client may take for the next part of a message
    :ivar min_data_rate: bytes a second that a message has to come with, after a minute; 0: any
    :ivar handler_timeout: seconds that a handler may take for an answer
    :ivar session_timeout: seconds that a whole session may take
    :ivar max_errors: commands that are none, before a session is ended
    :ivar max_rejects: refused commands (recipients above all) before a session is ended
    :ivar max_recipients: of one message
    :ivar max_buffered: bytes that all sessions hold for their clients at once, beyond 64 KiB each;
        0 is no limit
    :ivar max_buffered_from_ip: the same for the sessions of one client; default: an eighth of
        ``max_buffered``, at least a message of the largest size
    :ivar strict_paths: refuse addresses without angle brackets, and tabs in place of spaces
    :ivar max_line_length: octets of a line of a message with its line end; 0 is no limit
    :ivar bare_newline: what becomes of CR and LF that are not a pair, and of NUL
    :ivar tls_handshake_timeout: seconds that a client may take for a TLS handshake
    :ivar tls_failure_rate: TLS handshakes of one client that fail, or do not end, in a time, as
        ``N/PERIOD``; ``0``: no limit
    :ivar shutdown_timeout: seconds that messages in flight get at a stop
    """

    listen: tuple[str, ...] = ()
    port: tuple[Port, ...] = (PORT,)
    backlog: int = BACKLOG
    socket_mode: Annotated[int, Meta(ge=0, le=0o777)] = SOCKET_MODE
    limit_connections: Count = msgspec.field(default_factory=default_limit_connections)
    max_from_ip: CountOrNone = MAX_FROM_IP
    ipv6_prefix: Annotated[int, Meta(ge=1, le=128)] = IPV6_PREFIX
    max_from_net: tuple[Text, ...] = MAX_FROM_NET
    rate: tuple[Text, ...] = ()
    rate_net: tuple[Text, ...] = ()
    fair_share: bool = False
    allow: tuple[Text, ...] = ()
    deny: tuple[Text, ...] = ()
    exempt: tuple[Text, ...] = ()
    reserve: CountOrNone = 0
    greet_pause: Annotated[float, Meta(ge=0, le=LONGEST_GREET_PAUSE)] = 0.0
    proxy_trust: tuple[Text, ...] = ()
    proxy_timeout: Seconds = PROXY_SECONDS
    probe_from: tuple[Text, ...] = ()
    dnsbl: tuple[Text, ...] = ()
    dnsbl_threshold: Annotated[int, Meta(ge=1, le=10_000)] = 1
    rdns: bool = False
    dns_timeout: Seconds = DNS_SECONDS
    dns_server: Text | None = None
    max_loop_lag: Annotated[float, Meta(ge=0, le=LONGEST_SECONDS)] = 0.0
    refuse_first: CountOrNone = 0
    refuse_every: CountOrNone = 0
    when_full: WhenFull = WhenFull()
    hostname: str = msgspec.field(default_factory=_system_name)
    tls_cert: tuple[Text, ...] = ()
    tls_key: tuple[Text, ...] = ()
    tls_min_version: Literal["1.2", "1.3"] = "1.2"
    tls_client_ca: Text | None = None
    tls_client_verify: Literal["optional", "require"] = "optional"
    require_starttls: bool = False
    max_message_size: Annotated[int, Meta(ge=0)] = MAX_MESSAGE_SIZE
    timeout: Seconds = TIMEOUT_SECONDS
    stress_timeout: Annotated[float, Meta(ge=0, le=LONGEST_SECONDS)] = STRESS_SECONDS
    data_timeout: Seconds = DATA_TIMEOUT_SECONDS
    min_data_rate: Annotated[int, Meta(ge=0)] = MIN_DATA_RATE
    handler_timeout: Seconds = HANDLER_TIMEOUT_SECONDS
    session_timeout: Seconds = SESSION_TIMEOUT_SECONDS
    tls_handshake_timeout: Seconds = TLS_HANDSHAKE_SECONDS
    tls_failure_rate: Text = TLS_FAILURE_RATE
    max_errors: Annotated[int, Meta(ge=0, le=1_000_000)] = MAX_ERRORS
    max_rejects: Annotated[int, Meta(ge=0, le=1_000_000)] = MAX_REJECTS
    max_recipients: Annotated[int, Meta(ge=1, le=1_000_000)] = MAX_RECIPIENTS
    max_buffered: Annotated[int, Meta(ge=0)] = MAX_BUFFERED
    max_buffered_from_ip: Annotated[int, Meta(ge=0)] | None = None
    strict_paths: bool = False
    max_line_length: Annotated[int, Meta(ge=0)] = 0
    bare_newline: Literal["reject", "normalize", "accept"] = "normalize"
    shutdown_timeout: Annotated[float, Meta(ge=0, le=LONGEST_SECONDS)] = SHUTDOWN_TIMEOUT_SECONDS

    @classmethod
    def build(cls, settings: Mapping[str, Any]) -> Self:
        """Return the configuration that *settings* name, each checked; None takes the default.

        :raises SettingError: a setting is unknown, cannot be read, or is out of its range
        """
        given = {name: _read(name, value) for name, value in settings.items() if value is not None}
        try:
            config = msgspec.convert(given, cls, strict=False)
        except msgspec.ValidationError as error:
            raise _setting_error(cls, str(error), settings) from None
        config.check()
        return config

    def check(self) -> None:
        """Check what no single setting shows.

        :raises SettingError: two settings contradict each other
        """
        if not _HOSTNAME.fullmatch(self.hostname):
            reason = "a host's name has no spaces, is ASCII, and at most 255 characters long"
            raise SettingError("hostname", self.hostname, reason)
        if self.reserve >= self.limit_connections:
            reason = f"must be less than limit_connections, which is {self.limit_connections}"
            raise SettingError("reserve", self.reserve, reason)
        if self.reserve and not self.exempt:
            raise SettingError("reserve", self.reserve, "nobody is exempt, so nobody could come in")
        self._check_tls()

    def _check_tls(self) -> None:
        certs, keys = self.tls_cert, self.tls_key
        if keys and not certs:
            raise SettingError("tls_key", keys[0], "there is no tls_cert that it belongs to")
        if keys and len(keys) != len(certs):
            reason = (
                f"{len(keys)} given, and tls_cert has {len(certs)} ({', '.join(certs)}): "
                "one for each, in order, or none where the keys are in the same files"
            )
            raise SettingError("tls_key", ", ".join(keys), reason)
        if self.tls_client_ca and not certs:
            reason = "there is no tls_cert, and without one no TLS"
            raise SettingError("tls_client_ca", self.tls_client_ca, reason)
        if self.tls_client_verify == "require" and not self.tls_client_ca:
            reason = "there is no tls_client_ca to verify them against"
            raise SettingError("tls_client_verify", self.tls_client_verify, reason)


class DaemonConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of the daemon: a server's, and those of the process.

    :ivar handler: the chain, each ``NAME``, ``NAME:ARGUMENT`` or ``module:attr``
    :ivar user: whom to become once the sockets are bound
    :ivar control: path of the control socket; None is none
    :ivar detach: run in the background
    :ivar pid_file: where to write the process id
    :ivar metrics: where metrics, health and the status page are served by HTTP; None: nowhere
    :ivar log_level: the least severe messages that are logged
    :ivar log_to: ``stderr``, ``stdout``, ``syslog``, ``journald`` or a file; default: stderr,
        detached: syslog
    :ivar log_format: text for people, or JSON for machines, an object a line
    :ivar loop: the event loop
    """

    handler: tuple[str, ...] = ("maildir:./Maildir",)
    user: Text | None = None
    control: Text | None = None
    detach: bool = False
    pid_file: Text | None = None
    metrics: Text | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_to: Text | None = None
    log_format: Literal["text", "json"] = "text"
    loop: Literal["uvloop", "asyncio"] = "uvloop"

    def check(self) -> None:
        """Check what no single setting shows."""
        super().check()  # a msgspec class is not the one the compiler saw
        if self.require_starttls and not self.tls_cert:
            raise SettingError("require_starttls", True, "there is no tls_cert to offer TLS with")
        if not self.handler:
            raise SettingError("handler", "", "there must be one at least")


def _read(name: str, value: Any) -> Any:
    """Turn words and units into figures, and one of several into a list of one."""
    if name in READERS and isinstance(value, str):
        try:
            return READERS[name](value)
        except ValueError as error:
            raise SettingError(name, value, str(error)) from None
    if name in _LISTS and isinstance(value, (str, int)):
        return (value,)
    return value


_WHERE = re.compile(r"^(?P<reason>.*?)(?: - at `\$\.(?P<name>\w+)(?:\[(?P<index>\d+)\])?[^`]*`)?$")
_UNKNOWN = re.compile(r"unknown field `(\w+)`")


def _setting_error(cls: type[Config], message: str, settings: Mapping[str, Any]) -> SettingError:
    """Turn msgspec's message, which names the place only, into one that names the value."""
    unknown = _UNKNOWN.search(message)
    if unknown:
        return SettingError(unknown[1], settings.get(unknown[1]), "there is no such setting")
    where = _WHERE.match(message)
    assert where is not None
    name = where["name"]
    value = settings[name]
    if where["index"] and isinstance(value, (list, tuple)):
        value = value[int(where["index"])]
    choices = get_args(get_type_hints(cls)[name])
    if message.startswith("Invalid enum value"):
        return SettingError(name, value, f"expected one of {', '.join(choices)}")
    reason = (
        where["reason"]
        .replace("`", "")
        .replace("int", "a whole number", 1)
        .replace("float", "a number", 1)
        .removesuffix(", got str")
    )
    return SettingError(name, value, reason[0].lower() + reason[1:])
