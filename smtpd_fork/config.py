"""Config: the settings of a server and of the daemon, with types, defaults and checks.

A setting has the name of its option. :meth:`Config.build` reads values as an embedder, the
environment or a file has them (``"25M"``, ``"defer:5"``, one port or several). An error names the
setting, its value and what was expected.
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

from smtpd_fork.setting_faults import setting_error, wrong_type
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
"""The port of qpsmtpd-forkserver(8); it needs no privileges."""
LIMIT_CONNECTIONS = 1000
"""Sessions; each is a few KiB here, where qpsmtpd forks a process (its default: 15)."""

MAX_FROM_IP = 50
"""Sessions at once of one client; Postfix's smtpd_client_connection_count_limit."""

IPV6_PREFIX = 64
"""Bits of the network that counts as one client: a customer has a /64 at least (RFC 6177)."""

PROXY_SECONDS = 5.0
"""Time for a PROXY header: a proxy sends it in its first packet."""
RESERVED_DESCRIPTORS = 64
"""Kept out of the default limit: listeners, log, Maildir writers, whatever a handler opens."""

MAX_PROCESSES = 256
"""More than any machine has cores for; each takes the memory of a Python process."""

_HOSTNAME = re.compile(r"[!-~]{1,255}")


def default_limit_connections() -> int:
    """Return 1000, or what fits where RLIMIT_NOFILE (getrlimit(2), the soft limit) is small."""
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
    """The settings of a server. Make one with :meth:`build`, which checks them.

    Times are in seconds, sizes in bytes. A client is an IPv4 address or an IPv6 network of
    ``ipv6_prefix`` bits. docs/options.md describes each setting as well.
    """

    listen: tuple[str, ...] = ()
    """Addresses, as ``--listen-address`` takes them; empty: all interfaces, IPv4 and IPv6."""
    port: tuple[Port, ...] = (PORT,)
    """Ports of the addresses that name none; 0 takes a free one."""
    backlog: int = 1024
    """Of listen(2); below 0 counts as 0, above the maximum of the system (often 4096) as that."""
    socket_mode: Mode = 0o660
    """File mode of unix sockets; by default their owner and group may connect."""
    limit_connections: Count = msgspec.field(default_factory=default_limit_connections)
    """Sessions at once."""
    max_from_ip: CountOrZero = MAX_FROM_IP
    """Sessions at once of one client; 0 is no limit."""
    ipv6_prefix: Annotated[int, Meta(ge=1, le=128)] = IPV6_PREFIX
    """Bits of the IPv6 network that counts as one client."""
    max_from_net: tuple[Text, ...] = ("25%/24", "25%/48")
    """Sessions at once of one network, each ``N/PREFIX``, or ``N%/PREFIX`` for a share of
    ``limit_connections``; ``0`` is no limit. A /24 is the smallest network that is routed by itself
    (RFC 7454 6.1.3), a /48 the largest that one site gets (RFC 6177). With a quarter each, no such
    network shuts out the others."""
    rate: tuple[Text, ...] = ()
    """New sessions of one client in a period, each ``N/PERIOD``."""
    rate_net: tuple[Text, ...] = ()
    """New sessions of one network in a period, each ``N/PERIOD/PREFIX``."""
    fair_share: bool = False
    """While slots are short, no client holds more than a fair share."""
    allow: tuple[Text, ...] = ()
    """Networks, or files of them, that are not denied."""
    deny: tuple[Text, ...] = ()
    """Networks, or files of them, that are denied."""
    exempt: tuple[Text, ...] = ()
    """Networks, or files of them, to which the limits of clients and networks do not apply."""
    reserve: CountOrZero = 0
    """Connection slots for exempt clients alone."""
    greet_pause: GreetPause = 0.0
    """Delay of the greeting; a client that sends before it is refused."""
    greet_pause_deny: SecondsOrZero = 0.0
    """How long such a client is denied; 0: it is not."""
    proxy_trust: tuple[Text, ...] = ()
    """Networks, or files of them, that may send PROXY headers."""
    proxy_timeout: Seconds = PROXY_SECONDS
    """Time for a PROXY header."""
    xclient_trust: tuple[Text, ...] = ()
    """Networks, or files of them, that may send XCLIENT; ``unix`` for clients of unix sockets."""
    xforward_trust: tuple[Text, ...] = ()
    """The same for XFORWARD."""
    probe_from: tuple[Text, ...] = ()
    """Networks, or files of them, whose connections are health checks and no sessions."""
    dnsbl: tuple[Text, ...] = ()
    """DNS blocklists, each ``ZONE[=CODES][=WEIGHT]``, see :mod:`smtpd_fork.listeners.dnsbl`."""
    dnsbl_threshold: Annotated[int, Meta(ge=1, le=10_000)] = 1
    """Total weight of the blocklists that list a client, from which on it is refused."""
    rdns: bool = False
    """Look up the names of clients (reverse DNS)."""
    dns_timeout: Seconds = 5.0
    """Time for a DNS query (RFC 1035 7.2)."""
    dns_server: Text | None = None
    """DNS server, ``ADDRESS`` or ``ADDRESS:PORT``; default: those of the system."""
    max_loop_lag: SecondsOrZero = 0.0
    """Event-loop lag from which on new clients are refused; 0 is no limit."""
    refuse_first: CountOrZero = 0
    """Refuse this many of the first clients, for testing."""
    refuse_every: CountOrZero = 0
    """Refuse every Nth client after those."""
    when_full: Annotated[WhenFull, Meta(extra={"reader": WhenFull.parse})] = WhenFull()
    """What happens to clients for whom there is no connection slot."""
    hostname: str = msgspec.field(default_factory=_system_name)
    """Name of this host in replies and headers; default: the name of the system."""
    authserv_id: tuple[Annotated[str, Meta(pattern=r'^[^\s;()"]{1,255}$')], ...] = ()
    """Names besides ``hostname`` by which this server is known in Authentication-Results."""
    max_message_size: Size = 1 << 25
    """Largest message; 0 is no limit. The default, 32 MiB, is aiosmtpd's DATA_SIZE_DEFAULT."""
    timeout: Seconds = 300.0
    """Time until a client's next command begins (RFC 5321 4.5.3.2.7 asks for five minutes), and,
    up to 60 s, for all of a command once its first byte has come."""
    stress_timeout: SecondsOrZero = 10.0
    """Replaces ``timeout``, ``data_timeout`` and ``tls_handshake_timeout`` while three quarters of
    the connection slots are in use, and is the longest time without progress while clients wait for
    a slot. 0 disables. The default is Postfix's smtpd_timeout under stress."""
    data_timeout: Seconds = 180.0
    """Time for the next part of a message (RFC 5321 4.5.3.2.5)."""
    min_data_rate: Annotated[int, Meta(ge=0)] = 100
    """Bytes a second of a message, after its first minute; 0 is no minimum. A modem of 1985 is
    faster than the default."""
    handler_timeout: Seconds = 300.0
    """Time for a handler's answer; RFC 5321 4.5.3.2.6 has clients wait ten minutes."""
    session_timeout: Seconds = 3600.0
    """Time for a whole session."""
    tls_handshake_timeout: Seconds = 30.0
    """Time for a TLS handshake; half of asyncio's, as a stalled one holds a connection slot."""
    tls_failure_rate: Text = "300/m"
    """TLS handshakes of one client that fail or do not end, ``N/PERIOD``; ``0`` is no limit. Half a
    handshake takes about a millisecond of CPU time, so the default is half a per cent. Postfix's
    smtpd_client_new_tls_session_rate_limit does this for all handshakes."""
    max_errors: CountOrZero = 20
    """Unknown and malformed commands of a session; Postfix's smtpd_hard_error_limit."""
    max_rejects: CountOrZero = 100
    """Refused commands of a session, recipients above all. A message may have a hundred recipients
    at least (RFC 5321 4.5.3.1.8), and a mailing list has dead addresses."""
    tarpit: Delay = 0.0
    """Delay of each reply to suspicious clients; 0: only handlers delay replies."""
    max_recipients: Count = 1000
    """Recipients of a message; Postfix's smtpd_recipient_limit. RFC 5321 asks for 100 at least."""
    max_hops: CountOrZero = 50
    """``Received`` fields of a message; more are a mail loop. Postfix's hopcount_limit; 0 is no
    limit."""
    max_buffered: Size = 1 << 29
    """Memory of all sessions for messages, recipients and unread replies, beyond 64 KiB each; 0 is
    no limit. The default is 512 MiB: sixteen messages of the largest size."""
    max_buffered_from_ip: Size | None = None
    """The same of one client; default: an eighth of ``max_buffered``, and at least a message of the
    largest size."""
    strict_paths: bool = False
    """Refuse addresses without angle brackets, and tabs in place of spaces."""
    max_line_length: Size = 0
    """Octets of a line of a message, with its line end; 0 is no limit."""
    bare_newline: Literal["reject", "normalize", "accept"] = "normalize"
    """What happens to CR and LF that are not a pair, and to NUL."""
    shutdown_timeout: SecondsOrZero = 30.0
    """Time for messages in progress at a stop; Kubernetes' grace period, a third of systemd's."""

    @classmethod
    def build(cls, settings: Mapping[str, Any]) -> Self:
        """Return the configuration that *settings* describe, each checked; None is the default.

        :raises SettingError: a setting is unknown, cannot be read, or is out of its range
        """
        given = {name: _read(name, value) for name, value in settings.items() if value is not None}
        try:
            config = msgspec.convert(given, cls, strict=False)
        except msgspec.ValidationError as error:
            raise setting_error(cls, str(error), settings) from None
        if isinstance(most := given.get("max_from_ip"), LocalCount):
            config = msgspec.structs.replace(config, max_from_ip=most)  # it was made a plain int
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
            reason = "a host's name has no spaces, is ASCII, and at most 255 characters long"
            raise SettingError("hostname", self.hostname, reason)
        if self.reserve >= self.limit_connections:
            reason = f"must be less than limit_connections, which is {self.limit_connections}"
            raise SettingError("reserve", self.reserve, reason)
        if self.reserve and not self.exempt:
            raise SettingError("reserve", self.reserve, "needs --exempt: else no client may use it")
        if self.greet_pause_deny and not self.greet_pause:
            raise MissingSettingError("greet_pause_deny", self.greet_pause_deny, "greet_pause")
        self.check_tls()
        self.check_fleet()


class DaemonConfig(Config, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of the daemon: those of a server, and those of the process."""

    handler: tuple[str | dict[str, Any], ...] = ("maildir:./Maildir",)
    """The handler chain, each ``NAME``, ``NAME:ARGUMENT,KEY=VALUE`` or ``module:attr``, or a table
    with ``use`` and the same keys."""
    reload_handlers: bool = False
    """Load handlers again for new sessions when their files change, for development."""
    user: Text | None = None
    """User to drop privileges to, once the sockets are bound."""
    control: Text | None = None
    """Path of the control socket; default: none."""
    detach: bool = False
    """Run in the background."""
    pid_file: Text | None = None
    """File for the process id."""
    processes: Annotated[int, Meta(ge=1, le=MAX_PROCESSES)] = 1
    """Processes that serve; with more than one, a supervisor starts and replaces them."""
    metrics: Text | None = None
    """Address where metrics, health checks and the status page are served by HTTP."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe messages that are logged."""
    log_to: Text | None = None
    """``stderr``, ``stdout``, ``syslog``, ``journald`` or a file; default: stderr, or journald
    where that is systemd's journal; with ``detach`` syslog."""
    log_format: Literal["text", "json"] = "text"
    """Text for people, or a JSON object a line."""
    loop: Literal["uvloop", "asyncio"] = "uvloop"
    """The event loop."""

    def check(self) -> None:
        """Check the settings against each other."""
        super().check()  # a msgspec class is not the one the compiler saw
        if self.require_starttls and not self.tls_cert:
            raise MissingSettingError("require_starttls", self.require_starttls, "tls_cert")
        if self.log_to == "-":
            reason = "write stderr or stdout, or ./- for a file of this name"
            raise SettingError("log_to", self.log_to, reason)
        if not self.handler:
            raise SettingError("handler", "", "there must be one at least")
        if self.limit_connections < self.processes:
            reason = f"each needs a connection, and limit_connections is {self.limit_connections}"
            raise SettingError("processes", self.processes, reason)
        if self.processes > 1 and (local := first_local(self)):
            reason = f"it would be multiplied by processes ({self.processes}); remove local:"
            raise SettingError(*local, reason)
        if 0 < self.reserve < self.processes:
            reason = f"each needs a reserved connection, and reserve is {self.reserve}"
            raise SettingError("processes", self.processes, reason)


def _readers(hint: Any) -> Iterator[Callable[[str], object]]:
    """Return what reads the text of a setting of type *hint*, if anything does."""
    for part in get_args(hint):
        if not isinstance(part, Meta):
            yield from _readers(part)
        elif part.extra:
            yield from (part.extra[name] for name in part.extra if name == "reader")


_HINTS = get_type_hints(DaemonConfig, include_extras=True)

READERS = {name: reader for name, hint in _HINTS.items() for reader in _readers(hint)}
"""Functions that read the settings that are written with units or words."""

BOOLEANS = frozenset(name for name, hint in _HINTS.items() if hint is bool)
"""Settings that are true or false."""

LISTS = frozenset(name for name, hint in _HINTS.items() if get_origin(hint) is tuple)
"""Settings with several values; a single one need not be in a list."""


def _read(name: str, value: Any) -> Any:
    """Return *value* with units and words read, and a single value of several as a tuple."""
    if name in BOOLEANS and not isinstance(value, bool):
        raise wrong_type(name, value, bool)  # msgspec takes 1 and "1" as well
    if name == "when_full" and not isinstance(value, (str, WhenFull)):
        raise wrong_type(name, value, str)  # and a table
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
