"""Config: the settings of a server and of the daemon, with types, defaults and checks.

Each setting has the name of its option. :meth:`Config.build` reads values as embedders, environment
variables and configuration files write them (``"25M"``, ``"defer:5"``, one port or several). Each
error names the setting, its value and the values that are accepted.
"""

from __future__ import annotations

import re
import resource
import socket
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address
from typing import Annotated, Any, Literal, Self, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from smtpd_fork.setting_errors import setting_error, wrong_type
from smtpd_fork.setting_types import (
    Count,
    CountOrZero,
    Delay,
    GreetPause,
    LocalCount,
    MissingSettingError,
    Mode,
    Port,
    Seconds,
    SecondsOrZero,
    SettingError,
    Size,
    Text,
    WhenFull,
    first_local,
    without_local,
)
from smtpd_fork.tls_config import TlsConfig

__all__ = [
    "BOOLEANS", "LIMIT_CONNECTIONS", "LISTS", "MAX_FROM_IP", "READERS", "Config", "DaemonConfig",
    "SettingError", "WhenFull", "default_limit_connections",
]  # fmt: skip

PORT = 2525
"""The default port of qpsmtpd-forkserver(8). Binding it needs no privileges."""
LIMIT_CONNECTIONS = 1000
"""Concurrent sessions; each takes a few KiB. qpsmtpd, with a process for each, has a default of
15."""

MAX_FROM_IP = 50
"""Concurrent sessions of one client; Postfix's smtpd_client_connection_count_limit."""

IPV6_PREFIX = 64
"""Bits of the IPv6 network that counts as one client: a site gets at least a /64 (RFC 6177)."""

PROXY_SECONDS = 5.0
"""Seconds to receive a PROXY header, which a proxy sends in its first packet."""
RESERVED_DESCRIPTORS = 64
"""File descriptors that the default limit leaves for listeners, log, Maildir and handlers."""

MAX_PROCESSES = 256
"""More than the cores of any machine; each process takes the memory of a Python interpreter."""

_HOSTNAME = re.compile(r"[!-~]{1,255}")


def default_limit_connections() -> int:
    """Return 1000, or less if the soft limit RLIMIT_NOFILE (getrlimit(2)) is too low for it."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return LIMIT_CONNECTIONS
    return max(1, min(LIMIT_CONNECTIONS, soft - min(RESERVED_DESCRIPTORS, soft // 2)))


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _system_name() -> str:
    return socket.gethostname() or "localhost"


class Config(TlsConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of a server. Create it with :meth:`build`, which checks them.

    Times are in seconds, sizes in bytes. A client is an IPv4 address or an IPv6 network of
    ``ipv6_prefix`` bits. docs/options.md has more about each setting.
    """

    listen: tuple[str, ...] = ()
    """Addresses, in the form of ``--listen-address``; empty: all interfaces, IPv4 and IPv6."""
    port: tuple[Port, ...] = (PORT,)
    """Ports for addresses without a port; 0 selects a free port."""
    backlog: int = 1024
    """Backlog of listen(2). A negative value counts as 0; the system limits it, often to 4096."""
    socket_mode: Mode = 0o660
    """File mode of unix sockets; by default their owner and group may connect."""
    limit_connections: Count = msgspec.field(default_factory=default_limit_connections)
    """Maximum of concurrent sessions."""
    max_from_ip: CountOrZero = MAX_FROM_IP
    """Maximum of concurrent sessions of one client; 0 is no limit."""
    ipv6_prefix: Annotated[int, Meta(ge=1, le=128)] = IPV6_PREFIX
    """Bits of the IPv6 network that counts as one client."""
    max_from_net: tuple[Text, ...] = ("25%/24", "25%/48")
    """Maximum of concurrent sessions of one network, each ``N/PREFIX``, or ``N%/PREFIX`` for a
    share of ``limit_connections``; ``0`` is no limit. A /24 is the smallest network that is routed
    by itself (RFC 7454 6.1.3), a /48 the largest that one site gets (RFC 6177). With a limit of a
    quarter, no such network can take the connection slots of all others."""
    rate: tuple[Text, ...] = ()
    """Maximum of new sessions of one client in a period, each ``N/PERIOD``."""
    rate_net: tuple[Text, ...] = ()
    """Maximum of new sessions of one network in a period, each ``N/PERIOD/PREFIX``."""
    fair_share: bool = False
    """While few connection slots are free, refuse clients that hold more than a fair share."""
    allow: tuple[Text, ...] = ()
    """Networks, or files of networks, that are not denied even if ``deny`` contains them."""
    deny: tuple[Text, ...] = ()
    """Networks, or files of networks, whose clients are refused."""
    exempt: tuple[Text, ...] = ()
    """Networks, or files of networks, to which the limits of clients and networks do not apply."""
    reserve: CountOrZero = 0
    """Connection slots that only exempt clients can use."""
    greet_pause: GreetPause = 0.0
    """Delay of the greeting; a client that sends data before the greeting is refused."""
    greet_pause_deny: SecondsOrZero = 0.0
    """How long new connections of such a client are refused as well; 0 disables."""
    proxy_trust: tuple[Text, ...] = ()
    """Networks, or files of networks, that may send PROXY headers."""
    proxy_timeout: Seconds = PROXY_SECONDS
    """Time to receive a PROXY header."""
    xclient_trust: tuple[Text, ...] = ()
    """Networks, or files of networks, that may send XCLIENT; ``unix`` is all unix sockets."""
    xforward_trust: tuple[Text, ...] = ()
    """Networks, or files of networks, that may send XFORWARD; ``unix`` is all unix sockets."""
    probe_from: tuple[Text, ...] = ()
    """Networks, or files of networks, whose connections are health checks, not sessions."""
    dnsbl: tuple[Text, ...] = ()
    """DNS blocklists, each ``ZONE[=CODES][=WEIGHT]``, see :mod:`smtpd_fork.listeners.dnsbl`."""
    dnsbl_threshold: Annotated[int, Meta(ge=1, le=10_000)] = 1
    """Refuse a client if the weights of the blocklists that list it add up to this or more."""
    rdns: bool = False
    """Look up the names of clients (reverse DNS)."""
    dns_timeout: Seconds = 5.0
    """Time limit of a DNS query (RFC 1035 7.2)."""
    dns_server: Text | None = None
    """DNS server, ``ADDRESS`` or ``ADDRESS:PORT``; default: the DNS servers of the system."""
    max_loop_lag: SecondsOrZero = 0.0
    """Refuse new clients while the event-loop lag is longer than this; 0 is no limit."""
    refuse_first: CountOrZero = 0
    """Refuse the first N clients, for testing."""
    refuse_every: CountOrZero = 0
    """Refuse every Nth client after those of ``refuse_first``, for testing."""
    when_full: Annotated[WhenFull, Meta(extra={"reader": WhenFull.parse})] = WhenFull()
    """Whether clients wait or are refused while all connection slots are in use."""
    hostname: str = msgspec.field(default_factory=_system_name)
    """Name of this host in replies and headers; default: the name of the system."""
    authserv_id: tuple[Annotated[str, Meta(pattern=r'^[^\s;()"]{1,255}$')], ...] = ()
    """Names besides ``hostname`` that identify this server in Authentication-Results."""
    max_message_size: Size = 1 << 25
    """Maximum size of a message; 0 is no limit. The default, 32 MiB, is aiosmtpd's."""
    timeout: Seconds = 300.0
    """Time for a client to begin its next command (RFC 5321 4.5.3.2.7 requires five minutes). A
    command that has begun must be complete within the same time, at most 60 s."""
    stress_timeout: SecondsOrZero = 10.0
    """Replaces ``timeout``, ``data_timeout`` and ``tls_handshake_timeout`` while three quarters of
    the connection slots are in use. While clients wait for a slot, it is also the longest time that
    a session may make no progress. 0 disables. The default is Postfix's smtpd_timeout under
    stress."""
    data_timeout: Seconds = 180.0
    """Time to receive the next part of a message (RFC 5321 4.5.3.2.5)."""
    min_data_rate: Annotated[int, Meta(ge=0)] = 100
    """Minimum bytes per second of a message, after its first minute; 0 is no minimum. A modem of
    1985 is faster than the default."""
    handler_timeout: Seconds = 300.0
    """Time limit of a hook; clients wait ten minutes for the reply to DATA (RFC 5321 4.5.3.2.6)."""
    session_timeout: Seconds = 3600.0
    """Time limit of a session."""
    tls_handshake_timeout: Seconds = 30.0
    """Time limit of a TLS handshake. It is half of asyncio's default, as a stalled handshake holds
    a connection slot."""
    tls_failure_rate: Text = "300/m"
    """Maximum of TLS handshakes of one client that fail or time out, ``N/PERIOD``; ``0`` is no
    limit. Such a handshake takes about a millisecond of CPU time, so that the default allows one
    client half a per cent of a core. Postfix's smtpd_client_new_tls_session_rate_limit counts all
    handshakes."""
    max_errors: CountOrZero = 20
    """Maximum of unknown and malformed commands in a session; Postfix's smtpd_hard_error_limit."""
    max_rejects: CountOrZero = 100
    """Maximum of rejected commands in a session, mostly RCPT. Clients may send a hundred recipients
    per message (RFC 5321 4.5.3.1.8), and mailing lists have invalid addresses."""
    tarpit: Delay = 0.0
    """Delay of each reply to suspicious clients; 0: only handlers delay replies."""
    max_recipients: Count = 1000
    """Maximum of recipients per message; Postfix's smtpd_recipient_limit. RFC 5321 requires 100."""
    max_hops: CountOrZero = 50
    """Maximum of ``Received`` fields in a message; a message with more is in a mail loop. Postfix's
    hopcount_limit; 0 is no limit."""
    max_buffered: Size = 1 << 29
    """Maximum memory of all sessions for messages, recipients and unsent replies; the first 64 KiB
    of each session are not counted. 0 is no limit. The default, 512 MiB, is sixteen messages of the
    default maximum size."""
    max_buffered_from_ip: Size | None = None
    """The same limit for one client; default: an eighth of ``max_buffered``, but at least
    ``max_message_size``."""
    strict_paths: bool = False
    """Reject addresses without angle brackets, and tabs instead of spaces."""
    max_line_length: Size = 0
    """Maximum octets of a line of a message, with its line end; 0 is no limit."""
    bare_newline: Literal["reject", "normalize", "accept"] = "normalize"
    """How messages with bare CR, bare LF or NUL are handled."""
    shutdown_timeout: SecondsOrZero = 30.0
    """Time for messages in progress at a stop; the default is Kubernetes' grace period."""

    @classmethod
    def build(cls, settings: Mapping[str, Any]) -> Self:
        """Return the configuration with the values of *settings*; None means the default.

        :raises SettingError: a setting is unknown, cannot be read, is out of its range, or
            contradicts another one
        """
        given = {name: _read(name, value) for name, value in settings.items() if value is not None}
        try:
            config = msgspec.convert(given, cls, strict=False)
        except msgspec.ValidationError as error:
            raise setting_error(cls, str(error), settings) from None
        if isinstance(limit := given.get("max_from_ip"), LocalCount):
            # msgspec has converted it to a plain int.
            config = msgspec.structs.replace(config, max_from_ip=limit)
        config.check()
        if "hostname" in given and _is_address(config.hostname):
            reason = "expected the name of this host; the address to listen on belongs in listen"
            raise SettingError("hostname", config.hostname, reason)
        return config

    def check(self) -> None:
        """Check the settings against each other.

        :raises SettingError: two settings contradict each other
        """
        if not _HOSTNAME.fullmatch(self.hostname):
            reason = "a host name is ASCII without spaces, and at most 255 characters long"
            raise SettingError("hostname", self.hostname, reason)
        if self.reserve >= self.limit_connections:
            reason = f"must be less than limit_connections, which is {self.limit_connections}"
            raise SettingError("reserve", self.reserve, reason)
        if self.reserve and not self.exempt:
            raise SettingError(
                "reserve", self.reserve, "needs --exempt: otherwise no client can use the slots"
            )
        if self.greet_pause_deny and not self.greet_pause:
            raise MissingSettingError("greet_pause_deny", self.greet_pause_deny, "greet_pause")
        self.check_tls()
        self.check_fleet()


class DaemonConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of the daemon: those of a server, and those of the process."""

    handler: tuple[str | dict[str, Any], ...] = ("maildir:./Maildir",)
    """The handlers, in order: each is ``NAME``, ``NAME:ARGUMENT,KEY=VALUE`` or ``module:attr``, or
    a table with ``use`` and the same keys."""
    reload_handlers: bool = False
    """Load handlers again for new sessions when their files change, for development."""
    user: Text | None = None
    """User that the process changes to after it has bound the sockets."""
    control: Text | None = None
    """Path of the control socket; default: none."""
    detach: bool = False
    """Run in the background."""
    pid_file: Text | None = None
    """File for the process id."""
    processes: Annotated[int, Meta(ge=1, le=MAX_PROCESSES)] = 1
    """Number of processes; with more than one, a supervisor starts and replaces them."""
    metrics: Text | None = None
    """Address of the HTTP server of metrics, health checks and the status page; default: none."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Minimum severity of log messages."""
    log_to: Text | None = None
    """``stderr``, ``stdout``, ``syslog``, ``journald`` or a file; default: stderr, or journald if
    stderr is connected to systemd's journal; with ``detach`` syslog."""
    log_format: Literal["text", "json"] = "text"
    """Format of log lines: text, or one JSON object per line."""
    loop: Literal["uvloop", "asyncio"] = "uvloop"
    """The event loop."""

    def check(self) -> None:
        """Check the settings against each other."""
        super().check()
        if self.require_starttls and not self.tls_cert:
            raise MissingSettingError("require_starttls", self.require_starttls, "tls_cert")
        if self.log_to == "-":
            reason = "write stderr or stdout, or ./- for a file of this name"
            raise SettingError("log_to", self.log_to, reason)
        if not self.handler:
            raise SettingError("handler", "", "at least one handler is required")
        if self.limit_connections < self.processes:
            reason = (
                "each process needs a connection slot, and limit_connections is "
                f"{self.limit_connections}"
            )
            raise SettingError("processes", self.processes, reason)
        if self.processes > 1 and (local := first_local(self)):
            reason = f"it would be multiplied by processes ({self.processes}); remove local:"
            raise SettingError(*local, reason)
        if 0 < self.reserve < self.processes:
            reason = f"each process needs a reserved connection slot, and reserve is {self.reserve}"
            raise SettingError("processes", self.processes, reason)


def _readers(hint: Any) -> Iterator[Callable[[str], object]]:
    """Yield the function in the type *hint* of a setting that parses text, if there is one."""
    for part in get_args(hint):
        if not isinstance(part, Meta):
            yield from _readers(part)
        elif part.extra:
            yield from (part.extra[name] for name in part.extra if name == "reader")


_HINTS = get_type_hints(DaemonConfig, include_extras=True)

READERS = {name: reader for name, hint in _HINTS.items() for reader in _readers(hint)}
"""Functions that parse settings with units or words, by setting."""

BOOLEANS = frozenset(name for name, hint in _HINTS.items() if hint is bool)
"""Settings that are true or false."""

LISTS = frozenset(name for name, hint in _HINTS.items() if get_origin(hint) is tuple)
"""Settings with several values; a single value need not be in a list."""


def _read(name: str, value: Any) -> Any:
    """Return *value* for msgspec: units are parsed, and a single value of a list is in a tuple."""
    if name in BOOLEANS and not isinstance(value, bool):
        raise wrong_type(name, value, bool)  # msgspec would accept 1 and "1" as well
    if name == "when_full" and not isinstance(value, (str, WhenFull)):
        raise wrong_type(name, value, str)  # msgspec would accept a table as well
    if name in READERS and isinstance(value, str):
        try:
            return READERS[name](value)
        except ValueError as error:
            raise SettingError(name, value, str(error)) from None
    if name == "max_from_ip" and isinstance(value, str):
        number, local = without_local(value)
        return LocalCount(number) if local and number.isdecimal() else number
    if name in LISTS and not isinstance(value, (list, tuple, set, frozenset)):
        return (value,)
    return value
