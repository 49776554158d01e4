"""The options, written down once: flags, environment, help and defaults come from this table."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from smtpd_fork.config import DaemonConfig, WhenFull
from smtpd_fork.units import format_size

__all__ = ["ENVIRONMENT_PREFIX", "OPTIONS", "SECTIONS", "SettingOption", "format_setting"]

ENVIRONMENT_PREFIX = "SMTPD_FORK_"

SECTIONS = ("Listening", "Limits", "Lists", "Mail", "TLS", "Process", "Log")


class SettingOption(click.Option):
    """An option that gives one setting; its value is read by the settings, not by click.

    :ivar section: the heading of the help that it stands under
    :ivar long_name: its long flag, without the dashes
    """

    def __init__(self, *flags: str, section: str, help: str, **more: Any) -> None:  # noqa: A002 - click's name
        longest = max((f for f in flags if f.startswith("--")), key=len)
        self.long_name = longest[2:]
        variable = ENVIRONMENT_PREFIX + self.long_name.replace("-", "_").upper()
        more.setdefault("envvar", variable)
        super().__init__(flags, help=help, **more)
        self.section = section

    def get_default(self, ctx: click.Context, call: bool = True) -> Any:
        """Have none: the settings know their defaults."""
        return None

    @property
    def default_text(self) -> str:
        """The default, as the help prints it; empty for none."""
        return _DEFAULT_TEXTS.get(str(self.name)) or _format_default(str(self.name))

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return flags and help, with the default behind it."""
        record = super().get_help_record(ctx)
        if record is None or not self.default_text:
            return record
        return record[0], f"{record[1]}  [{self.default_text}]"


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


_SIZES = {"max_buffered", "max_buffered_from_ip", "max_line_length", "max_message_size"}


def format_setting(name: str, value: Any) -> Any:
    """Return a setting's value as people write it: ``"32M"``, ``"300s"``, ``"0660"``.

    What has no unit is as it is: a number, a text, true or false, a tuple, None.
    """
    if name in _SIZES and value is not None:
        return format_size(value)
    if name == "socket_mode":
        return f"{value:04o}"
    if isinstance(value, float):
        return f"{value:g}s"
    return str(value) if isinstance(value, WhenFull) else value


def _format_default(name: str) -> str:
    fields = {field.name: field for field in msgspec.structs.fields(DaemonConfig)}
    default = fields[name].default
    if default is False or default is None or default is msgspec.NODEFAULT:
        return ""
    if isinstance(default, float):
        return f"{default:g} s"
    text = format_setting(name, default)
    return ", ".join(map(str, text)) if isinstance(text, tuple) else str(text)


OPTIONS = (
    SettingOption(
        "-p", "--port", section="Listening", metavar="PORT", multiple=True,
        help="Port for the addresses that name none; 0 takes a free one. Repeatable.",
    ),
    SettingOption(
        "-l", "--listen-address", "listen", section="Listening", metavar="ADDR", multiple=True,
        help="ADDR, ADDR:PORT, [V6]:PORT or unix:PATH; in front of it smtps: is TLS from the "
        "first byte, lmtp: is LMTP; behind that, +proxy takes a PROXY header first, "
        "+require-tls no mail in the clear, +no-tls offers no STARTTLS: smtp+proxy:ADDR. "
        "Repeatable.",
    ),
    SettingOption(
        "--proxy-trust", section="Listening", metavar="NET", multiple=True,
        help="Network, or file of networks, that may send PROXY headers. Repeatable.",
    ),
    SettingOption(
        "--proxy-timeout", section="Listening", metavar="TIME",
        help="For a PROXY header.",
    ),
    SettingOption(
        "--probe-from", section="Listening", metavar="NET", multiple=True,
        help="Network, or file of networks, whose connections are a load balancer's probes: no "
        "sessions, no place, no line in the log. Repeatable.",
    ),
    SettingOption(
        "--backlog", section="Listening", metavar="N",
        help="Clients that the kernel keeps waiting, as listen(2) has it.",
    ),
    SettingOption(
        "--socket-mode", section="Listening", metavar="MODE",
        help="File mode of unix sockets, in octal.",
    ),
    SettingOption(
        "-c", "--limit-connections", section="Limits", metavar="N",
        help="Sessions at once; beyond, clients are deferred or refused.",
    ),
    SettingOption(
        "-m", "--max-from-ip", section="Limits", metavar="N",
        help="Sessions at once from one source; 0 is no limit. Does not override -c.",
    ),
    SettingOption(
        "--ipv6-prefix", section="Limits", metavar="BITS",
        help="Of the network that is one source of IPv6.",
    ),
    SettingOption(
        "--max-from-net", section="Limits", metavar="N/PREFIX", multiple=True,
        help="Sessions at once from one network, IPv4 (100/24) or IPv6 (200/48), in figures or as "
        "a share of -c, which leaves local networks alone (25%/24); more get 421. 0 is no limit. "
        "Replaces the default. Repeatable.",
    ),
    SettingOption(
        "--rate", section="Limits", metavar="N/PERIOD", multiple=True,
        help="New sessions from one source in a time: 30/m, 5/10s. Repeatable.",
    ),
    SettingOption(
        "--rate-net", section="Limits", metavar="N/PERIOD/PREFIX", multiple=True,
        help="The same from one network: 100/m/24. Repeatable.",
    ),
    SettingOption(
        "--fair-share", section="Limits", is_flag=True,
        help="Over three quarters full, no source holds more than its part of the places.",
    ),
    SettingOption(
        "--greet-pause", section="Limits", metavar="TIME",
        help="Wait that long with the greeting; who talks before it is told 554. 0: not at all.",
    ),
    SettingOption(
        "--reserve", section="Limits", metavar="N",
        help="Places, of those of -c, that are for exempt clients alone.",
    ),
    SettingOption(
        "--when-full", section="Limits", metavar="HOW",
        help="defer (clients wait in the backlog), refuse (421 at once), or defer:SECONDS (421 "
        "after that long).",
    ),
    SettingOption(
        "--timeout", section="Limits", metavar="TIME",
        help="Longest wait for a client's next command, as 300 or 5m, and for all of a command "
        "that has begun (60 s at most); then 421. Single bytes do not extend it.",
    ),
    SettingOption(
        "--stress-timeout", section="Limits", metavar="TIME",
        help="Replaces --timeout, --tls-handshake-timeout and --data-timeout, if three quarters "
        "of the slots of -c are in use. When all are, and clients wait, those without progress for "
        "TIME get 421. 0 disables.",
    ),
    SettingOption(
        "--tls-handshake-timeout", section="Limits", metavar="TIME",
        help="For a TLS handshake.",
    ),
    SettingOption(
        "--tls-failure-rate", section="Limits", metavar="N/PERIOD",
        help="TLS handshakes of one client that may fail, or be under way, in a time, and four "
        "times as many of a /24 or /48. More get 454 for STARTTLS, and implicit TLS is closed. "
        "0 is no limit.",
    ),
    SettingOption(
        "--data-timeout", section="Limits", metavar="TIME",
        help="For the next part of a message.",
    ),
    SettingOption(
        "--min-data-rate", section="Limits", metavar="N",
        help="Bytes a second that a message has to come with, in each minute from its first byte "
        "to its end, chunks of BDAT and what is between them included; less gets 421. 0: any.",
    ),
    SettingOption(
        "--handler-timeout", section="Limits", metavar="TIME",
        help="For a handler's answer; then the client is told 451.",
    ),
    SettingOption(
        "--session-timeout", section="Limits", metavar="TIME",
        help="For a whole session.",
    ),
    SettingOption(
        "--max-errors", section="Limits", metavar="N",
        help="Commands that are none, before a session is ended.",
    ),
    SettingOption(
        "--max-rejects", section="Limits", metavar="N",
        help="Refused recipients, and other refused commands, of one session; the next one gets "
        "421, and the session ends.",
    ),
    SettingOption(
        "--max-recipients", section="Limits", metavar="N",
        help="Of one message.",
    ),
    SettingOption(
        "--max-buffered", section="Limits", metavar="SIZE",
        help="Memory for messages, recipients and unread replies of all sessions, beyond 64K of "
        "each session; a message that does not fit gets 452. Past three quarters of it, sessions "
        "that hold much and are idle get 421, the largest first. 0 is no limit.",
    ),
    SettingOption(
        "--max-buffered-from-ip", section="Limits", metavar="SIZE",
        help="The same of one client (IPv4 address, or network of --ipv6-prefix) that is not "
        "exempt; 0 is no limit.",
    ),
    SettingOption(
        "--max-loop-lag", section="Limits", metavar="TIME",
        help="By which the loop may be late, before clients are told 421. 0: any.",
    ),
    SettingOption(
        "--max-message-size", section="Limits", metavar="SIZE",
        help="In bytes, or as 25M; 0 is no limit.",
    ),
    SettingOption(
        "--max-line-length", section="Limits", metavar="SIZE",
        help="Longest line of a message in octets, with its line end; a longer one gets 500. 0: as "
        "long as the message may be.",
    ),
    SettingOption(
        "--allow", section="Lists", metavar="NET", multiple=True,
        help="Network, or file of networks, that is not denied; the smallest network around an "
        "address decides. Repeatable.",
    ),
    SettingOption(
        "--deny", section="Lists", metavar="NET", multiple=True,
        help="Network that is told 554, or file of NET [TEXT] lines. Repeatable.",
    ),
    SettingOption(
        "--exempt", section="Lists", metavar="NET", multiple=True,
        help="Network, or file of networks, that the limits of sources leave alone. Repeatable.",
    ),
    SettingOption(
        "--dnsbl", section="Lists", metavar="ZONE[=CODES][=WEIGHT]", multiple=True,
        help="Blocklist in the DNS; clients that it lists get 554. CODES are the answers that "
        "count, as in 127.0.0.[2;4..7]; default: all but the list's errors. Repeatable.",
    ),
    SettingOption(
        "--dnsbl-threshold", section="Lists", metavar="N",
        help="Weight of all that list a client, from which on it is refused.",
    ),
    SettingOption(
        "--rdns", section="Lists", is_flag=True,
        help="Ask for the clients' names: session.host_name_dns.",
    ),
    SettingOption(
        "--dns-timeout", section="Lists", metavar="TIME",
        help="For a question to the DNS; without an answer clients come in.",
    ),
    SettingOption(
        "--dns-server", section="Lists", metavar="ADDR",
        help="Whom to ask, as 192.0.2.53 or [::1]:5353.",
    ),
    SettingOption(
        "--refuse-first", section="Lists", metavar="N",
        help="Refuse the first N clients: a rehearsal of what yours do then.",
    ),
    SettingOption(
        "--refuse-every", section="Lists", metavar="N",
        help="Refuse each Nth client after those.",
    ),
    SettingOption(
        "--handler", section="Mail", metavar="HANDLER", multiple=True,
        help="maildir:PATH, debug, discard, or module:attr. Repeatable: a chain, the first answer "
        "wins.",
    ),
    SettingOption(
        "--bare-newline", section="Mail", metavar="HOW",
        help="Lone CR or LF in a message: normalize makes CR LF of each, accept keeps it, reject "
        "answers 550, also to NUL. LF alone ends a command, unless reject is set.",
    ),
    SettingOption(
        "--strict-paths", section="Mail", is_flag=True,
        help="Refuse an address of MAIL or RCPT with 553 if it is not in angle brackets, or stands "
        "beside a tab.",
    ),
    SettingOption(
        "--hostname", section="Mail", metavar="NAME",
        help="This host, in replies and headers.",
    ),
    SettingOption(
        "--tls-cert", section="TLS", metavar="FILE", multiple=True,
        help="Certificate chain, PEM; with it, STARTTLS is offered. Repeatable: clients get the "
        "one with the name they ask for, or the first.",
    ),
    SettingOption(
        "--tls-key", section="TLS", metavar="FILE", multiple=True,
        help="Its key, PEM. Repeatable, in the same order.",
    ),
    SettingOption(
        "--tls-min-version", section="TLS", metavar="VERSION",
        help="Oldest TLS that is spoken: 1.2 or 1.3.",
    ),
    SettingOption(
        "--tls-client-ca", section="TLS", metavar="FILE",
        help="Authorities, PEM; clients are asked for a certificate of theirs.",
    ),
    SettingOption(
        "--tls-client-verify", section="TLS", metavar="HOW",
        help="Clients without one: let in (optional), or sent away (require).",
    ),
    SettingOption(
        "--require-starttls", section="TLS", is_flag=True,
        help="Take no mail in the clear.",
    ),
    SettingOption(
        "-u", "--user", section="Process", metavar="USER",
        help="Become USER once the sockets are bound; takes root.",
    ),
    SettingOption(
        "--control", section="Process", metavar="PATH",
        help="Control socket, for status, kick and so on; its owner's and root's alone.",
    ),
    SettingOption(
        "-d", "--detach", section="Process", is_flag=True,
        help="Run in the background; returns once it serves.",
    ),
    SettingOption(
        "--pid-file", section="Process", metavar="FILE",
        help="Write the process id there; locked while it runs.",
    ),
    SettingOption(
        "--shutdown-timeout", section="Process", metavar="TIME",
        help="For messages in flight, after SIGTERM or SIGINT; a second signal stops at once.",
    ),
    SettingOption(
        "--loop", section="Process", metavar="LOOP",
        help="Event loop: uvloop or asyncio.",
    ),
    SettingOption(
        "--metrics", section="Process", metavar="ADDR",
        help="Serve metrics, health and a status page by HTTP on ADDR:PORT, [V6]:PORT or "
        "unix:PATH.",
    ),
    SettingOption(
        "--log-level", section="Log", metavar="LEVEL",
        help="debug, info, warning or error.",
    ),
    SettingOption(
        "--log-to", section="Log", metavar="WHERE",
        help="stderr, stdout, syslog, journald, or a file, which SIGHUP opens again.",
    ),
    SettingOption(
        "--log-format", section="Log", metavar="FORMAT",
        help="text, or json: an object a line.",
    ),
)  # fmt: skip
