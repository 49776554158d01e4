"""The options, defined once: flags, environment, help and place in a file come from this table.

Types and defaults are those of :class:`smtpd_fork.config.DaemonConfig`.
"""

from __future__ import annotations

from typing import Any, get_type_hints

import click
import msgspec

from smtpd_fork.config import LISTS, READERS, DaemonConfig, WhenFull
from smtpd_fork.units import format_size, parse_mode, parse_size

__all__ = [
    "DEFAULTS",
    "ENVIRONMENT_PREFIX",
    "OPTIONS",
    "SECTIONS",
    "TABLES",
    "SettingOption",
    "format_setting",
]

ENVIRONMENT_PREFIX = "SMTPD_FORK_"

_HINTS = get_type_hints(DaemonConfig)

DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(DaemonConfig)}

_SETTINGS = {"listen_address": "listen"}
"""Settings whose names are not those of their options."""

TABLES = ("", "tls", "gate")
"""Tables of a file; the first is its top level."""

_TABLE_OF = {"Limits": "gate", "Lists": "gate", "TLS": "tls"}
"""By section of the help."""

_DEFAULT_TEXTS = {
    "dns_server": "the system's",
    "hostname": "the system's name",
    "limit_connections": "1000, less where few files may be open",
    "listen": "all, IPv4 and IPv6",
    "max_buffered_from_ip": "an eighth of --max-buffered, at least a message; none with -m 0",
    "log_to": "stderr; detached: syslog",
    "tls_key": "in the same file",
    "user": "",
}
"""Defaults that no value shows."""


class SettingOption(click.Option):
    """The option of one setting. Its value is read by the settings, not by click.

    :param declaration: flags and metavar, as the help shows them: ``-p, --port PORT``
    :ivar section: its heading in the help
    :ivar setting: name of the setting
    :ivar long_name: its long flag, without the dashes
    :ivar table: the table of a file that it is in; empty for the top level
    :ivar key: its key there
    """

    def __init__(self, section: str, declaration: str, text: str) -> None:
        words = declaration.replace(",", "").split()
        flags = [word for word in words if word.startswith("-")]
        self.section = section
        self.long_name = flags[-1][2:]
        name = self.long_name.replace("-", "_")
        self.setting = _SETTINGS.get(name, name)
        self.table = _TABLE_OF.get(section, "")
        self.key = self.long_name.removeprefix("tls-" if self.table == "tls" else "")
        super().__init__(
            [*flags, self.setting],
            help=text,
            metavar=None if words == flags else words[-1],
            multiple=self.setting in LISTS,
            is_flag=_HINTS[self.setting] is bool or None,  # False means another thing to click
            envvar=ENVIRONMENT_PREFIX + name.upper(),
        )

    def get_default(self, ctx: click.Context, call: bool = True) -> Any:
        """Return None: the settings know their defaults."""
        return None

    @property
    def default_text(self) -> str:
        """The default, as the help shows it; empty for none."""
        return _DEFAULT_TEXTS.get(self.setting) or _format_default(self.setting)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return flags and help, with the default behind it."""
        record = super().get_help_record(ctx)
        if record is None or not self.default_text:
            return record
        return record[0], f"{record[1]}  [{self.default_text}]"


def format_setting(name: str, value: Any) -> Any:
    """Return a setting's value as people write it: ``"32M"``, ``"300s"``, ``"0660"``.

    What has no unit is as it is: a number, a text, true or false, a tuple, None.
    """
    reader = READERS.get(name)
    if reader is parse_size and value is not None:
        return format_size(value)
    if reader is parse_mode:
        return f"{value:04o}"
    if isinstance(value, float):
        return f"{value:g}s"
    return str(value) if isinstance(value, WhenFull) else value


def _format_default(name: str) -> str:
    default = DEFAULTS[name]
    if default is False or default is None or default is msgspec.NODEFAULT:
        return ""
    if isinstance(default, float):
        return f"{default:g} s"
    text = format_setting(name, default)
    return ", ".join(map(str, text)) if isinstance(text, tuple) else str(text)


_OPTIONS = {
    "Listening": {
        "-p, --port PORT":
            "Port for the addresses that name none; 0 takes a free one. Repeatable.",
        "-l, --listen-address ADDR":
            "ADDR, ADDR:PORT, [V6]:PORT or unix:PATH; in front of it smtps: is TLS from the first "
            "byte, lmtp: is LMTP; behind that, +proxy takes a PROXY header first, +require-tls no "
            "mail in the clear, +no-tls offers no STARTTLS: smtp+proxy:ADDR. Repeatable.",
        "--proxy-trust NET":
            "Network, or file of networks, that may send PROXY headers. Repeatable.",
        "--proxy-timeout TIME": "For a PROXY header.",
        "--probe-from NET":
            "Network, or file of networks, whose connections are a load balancer's probes: no "
            "sessions, no place, no line in the log. Repeatable.",
        "--backlog N": "Clients that the kernel keeps waiting, as listen(2) has it.",
        "--socket-mode MODE": "File mode of unix sockets, in octal.",
    },
    "Limits": {
        "-c, --limit-connections N": "Sessions at once; beyond, clients are deferred or refused.",
        "-m, --max-from-ip N":
            "Sessions at once from one source; 0 is no limit. Does not override -c.",
        "--ipv6-prefix BITS": "Of the network that is one source of IPv6.",
        "--max-from-net N/PREFIX":
            "Sessions at once from one network, IPv4 (100/24) or IPv6 (200/48), in figures or as a "
            "share of -c, which leaves local networks alone (25%/24); more get 421. 0 is no limit. "
            "Replaces the default. Repeatable.",
        "--rate N/PERIOD": "New sessions from one source in a time: 30/m, 5/10s. Repeatable.",
        "--rate-net N/PERIOD/PREFIX": "The same from one network: 100/m/24. Repeatable.",
        "--fair-share":
            "Over three quarters full, no source holds more than its part of the places.",
        "--greet-pause TIME":
            "Wait that long with the greeting; who talks before it is told 554. 0: not at all.",
        "--reserve N": "Places, of those of -c, that are for exempt clients alone.",
        "--when-full HOW":
            "defer (clients wait in the backlog), refuse (421 at once), or defer:SECONDS (421 "
            "after that long).",
        "--timeout TIME":
            "Longest wait for a client's next command, as 300 or 5m, and for all of a command that "
            "has begun (60 s at most); then 421. Single bytes do not extend it.",
        "--stress-timeout TIME":
            "Replaces --timeout, --tls-handshake-timeout and --data-timeout, if three quarters of "
            "the slots of -c are in use. When all are, and clients wait, those without progress "
            "for TIME get 421. 0 disables.",
        "--tls-handshake-timeout TIME": "For a TLS handshake.",
        "--tls-failure-rate N/PERIOD":
            "TLS handshakes of one client that may fail, or be under way, in a time, and four "
            "times as many of a /24 or /48. More get 454 for STARTTLS, and implicit TLS is closed. "
            "0 is no limit.",
        "--data-timeout TIME": "For the next part of a message.",
        "--min-data-rate N":
            "Bytes a second that a message has to come with, in each minute from its first byte to "
            "its end, chunks of BDAT and what is between them included; less gets 421. 0: any.",
        "--handler-timeout TIME": "For a handler's answer; then the client is told 451.",
        "--session-timeout TIME": "For a whole session.",
        "--max-errors N": "Commands that are none, before a session is ended.",
        "--max-rejects N":
            "Refused recipients, and other refused commands, of one session; the next one gets "
            "421, and the session ends.",
        "--max-recipients N": "Of one message.",
        "--max-buffered SIZE":
            "Memory for messages, recipients and unread replies of all sessions, beyond 64K of "
            "each session; a message that does not fit gets 452. Past three quarters of it, "
            "sessions that hold much and are idle get 421, the largest first. 0 is no limit.",
        "--max-buffered-from-ip SIZE":
            "The same of one client (IPv4 address, or network of --ipv6-prefix) that is not "
            "exempt; 0 is no limit.",
        "--max-loop-lag TIME":
            "By which the loop may be late, before clients are told 421. 0: any.",
        "--max-message-size SIZE": "In bytes, or as 25M; 0 is no limit.",
        "--max-line-length SIZE":
            "Longest line of a message in octets, with its line end; a longer one gets 500. 0: as "
            "long as the message may be.",
    },
    "Lists": {
        "--allow NET":
            "Network, or file of networks, that is not denied; the smallest network around an "
            "address decides. Repeatable.",
        "--deny NET": "Network that is told 554, or file of NET [TEXT] lines. Repeatable.",
        "--exempt NET":
            "Network, or file of networks, that the limits of sources leave alone. Repeatable.",
        "--dnsbl ZONE[=CODES][=WEIGHT]":
            "Blocklist in the DNS; clients that it lists get 554. CODES are the answers that "
            "count, as in 127.0.0.[2;4..7]; default: all but the list's errors. Repeatable.",
        "--dnsbl-threshold N": "Weight of all that list a client, from which on it is refused.",
        "--rdns": "Ask for the clients' names: session.host_name_dns.",
        "--dns-timeout TIME": "For a question to the DNS; without an answer clients come in.",
        "--dns-server ADDR": "Whom to ask, as 192.0.2.53 or [::1]:5353.",
        "--refuse-first N": "Refuse the first N clients: a rehearsal of what yours do then.",
        "--refuse-every N": "Refuse each Nth client after those.",
    },
    "Mail": {
        "--handler HANDLER":
            "maildir:PATH, debug, discard, or module:attr. Repeatable: a chain, the first answer "
            "wins.",
        "--bare-newline HOW":
            "Lone CR or LF in a message: normalize makes CR LF of each, accept keeps it, reject "
            "answers 550, also to NUL. LF alone ends a command, unless reject is set.",
        "--strict-paths":
            "Refuse an address of MAIL or RCPT with 553 if it is not in angle brackets, or stands "
            "beside a tab.",
        "--hostname NAME": "This host, in replies and headers.",
    },
    "TLS": {
        "--tls-cert FILE":
            "Certificate chain, PEM; with it, STARTTLS is offered. Repeatable: clients get the one "
            "with the name they ask for, or the first.",
        "--tls-key FILE": "Its key, PEM. Repeatable, in the same order.",
        "--tls-min-version VERSION": "Oldest TLS that is spoken: 1.2 or 1.3.",
        "--tls-client-ca FILE":
            "Authorities, PEM; clients are asked for a certificate of theirs.",
        "--tls-client-verify HOW":
            "Clients without one: let in (optional), or sent away (require).",
        "--require-starttls": "Take no mail in the clear.",
    },
    "Process": {
        "-u, --user USER": "Become USER once the sockets are bound; takes root.",
        "--control PATH":
            "Control socket, for status, kick and so on; its owner's and root's alone.",
        "-d, --detach": "Run in the background; returns once it serves.",
        "--pid-file FILE": "Write the process id there; locked while it runs.",
        "--shutdown-timeout TIME":
            "For messages in flight, after SIGTERM or SIGINT; a second signal stops at once.",
        "--loop LOOP": "Event loop: uvloop or asyncio.",
        "--metrics ADDR":
            "Serve metrics, health and a status page by HTTP on ADDR:PORT, [V6]:PORT or unix:PATH.",
    },
    "Log": {
        "--log-level LEVEL": "debug, info, warning or error.",
        "--log-to WHERE":
            "stderr, stdout, syslog, journald, or a file, which SIGHUP opens again.",
        "--log-format FORMAT": "text, or json: an object a line.",
    },
}  # fmt: skip

SECTIONS = tuple(_OPTIONS)

OPTIONS = tuple(
    SettingOption(section, *row) for section, rows in _OPTIONS.items() for row in rows.items()
)
