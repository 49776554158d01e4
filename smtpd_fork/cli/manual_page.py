"""The manual page, in the macros of man(7)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping

import click

from smtpd_fork.cli.base_command import CONFIG_HELP
from smtpd_fork.cli.command import SUBCOMMANDS, command
from smtpd_fork.cli.names import (
    CLIENT_VARIABLE,
    COMPLETION_VARIABLE,
    CONFIG_VARIABLE,
    ENVIRONMENT_PREFIX,
    PROGRAM,
)
from smtpd_fork.cli.options import OPTIONS, SECTIONS
from smtpd_fork.cli.setting_option import SettingOption
from smtpd_fork.errors import MEANINGS

__all__ = ["SIGNALS", "flags_of", "manual_page"]

SIGNALS = {
    "SIGTERM, SIGINT": "Graceful shutdown; a second signal stops the daemon immediately.",
    "SIGHUP": "Reload the settings, lists and certificates.",
    "SIGUSR2": "Zero-downtime upgrade: a new process inherits the sockets; this one exits "
    "when its sessions have ended.",
}

ENVIRONMENT = {
    f"{ENVIRONMENT_PREFIX}OPTION": "An option, by its long name in upper case: "
    f"{ENVIRONMENT_PREFIX}MAX_FROM_IP=10.",
    CONFIG_VARIABLE: "The configuration file, as --config.",
    CLIENT_VARIABLE: "The control socket, for the commands that query the daemon. The daemon does "
    "not read this variable.",
    "LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES": "Sockets that systemd passes (socket activation); "
    "they replace the listen addresses.",
    "NOTIFY_SOCKET, WATCHDOG_USEC": "Socket and interval of the notifications to systemd.",
}

FILES = {
    "./Maildir": "Accepted messages, without --handler.",
    "/etc/smtpd-fork.toml": "Configuration file of the Debian package. Other installations read "
    "only the file of --config.",
}

EXAMPLES = {
    f"{PROGRAM} -l 127.0.0.1 --handler debug": "Accept mail on port 2525 of this host, and print "
    "it.",
    f"{PROGRAM} -p 25 -u mail -d --pid-file /run/smtpd-fork.pid --handler maildir:/var/mail/in": (
        "Run in the background on port 25, and drop privileges."
    ),
    f"{PROGRAM} --handler accept:example.com --handler lmtp:unix:/run/dovecot/lmtp": (
        "Accept mail for one domain, and pass it to Dovecot."
    ),
    f"{PROGRAM} check --config /etc/smtpd-fork.toml": "Check the configuration, also while the "
    "daemon runs.",
    f"{PROGRAM} deny 192.0.2.0/24 --for 1h": "Refuse a network for an hour.",
    f'eval "$({COMPLETION_VARIABLE}=bash_source {PROGRAM})"': "Complete options in this shell; "
    "zsh_source and fish_source are for zsh and fish.",
}

_SEE_ALSO = {"qpsmtpd-forkserver": "8", "systemd.socket": "5", "sysexits.h": "3head"}


def manual_page() -> str:
    """Return ``packaging/smtpd-fork.8``."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield '.\\" Generated from the options by "make papers".'
    yield '.TH SMTPD-FORK 8 "" "smtpd-fork" "System Manager\'s Manual"'
    yield ".SH NAME"
    yield "smtpd\\-fork \\- SMTP daemon with connection limits and Python handlers"
    yield ".SH SYNOPSIS\n.B smtpd\\-fork\n.RI [ options ]"
    for name, chosen in SUBCOMMANDS.items():
        yield f".br\n.B smtpd\\-fork {_roff(name)}\n.RI [ options ]\n{_arguments(chosen)}".rstrip()
    yield f".SH DESCRIPTION\n{_roff(command.help or '')}\n{_roff(command.epilog or '')}"
    yield ".SH COMMANDS"
    yield _roff(
        "check, config and try accept all options of the daemon. The other commands query or "
        "change a running daemon, through its control socket, --control PATH."
    )
    for name, chosen in SUBCOMMANDS.items():
        yield from _command(name, chosen)
    yield ".SH OPTIONS"
    for section in SECTIONS:
        yield f".SS {section}"
        yield from _entries({flags_of(o): _help(o) for o in OPTIONS if o.section == section})
    yield ".SS Other"
    yield from _entries({"--config FILE": CONFIG_HELP})
    for heading, entries in (
        ("SIGNALS", SIGNALS),
        ("ENVIRONMENT", ENVIRONMENT),
        ("FILES", FILES),
        ("EXIT STATUS", {str(int(status)): meaning for status, meaning in MEANINGS.items()}),
        ("EXAMPLES", EXAMPLES),
    ):
        yield f".SH {heading}"
        yield from _entries(entries)
    yield ".SH SEE ALSO"
    yield ",\n".join(f".BR {_roff(name)} ({part})" for name, part in _SEE_ALSO.items())


def _command(name: str, chosen: click.Command) -> Iterator[str]:
    """Return the section of a command: its description and its own options."""
    yield f".SS {_roff(f'{name} {_arguments(chosen)}')}"
    yield "\n.PP\n".join(map(_roff, inspect.cleandoc(chosen.help or "").split("\n\n")))
    own = [each for each in chosen.params if isinstance(each, click.Option)]
    known = {"control", "config_file"}
    yield from _entries(
        {
            flags_of(each): each.help or ""
            for each in own
            if not isinstance(each, SettingOption) and each.name not in known
        }
    )


def _arguments(chosen: click.Command) -> str:
    arguments = (each for each in chosen.params if isinstance(each, click.Argument))
    return _roff(" ".join(str(each.metavar) for each in arguments))


def flags_of(option: click.Option) -> str:
    """Return the flags of an option with the name of its value: ``-p, --port PORT``."""
    return ", ".join(option.opts) + ("" if option.is_flag else f" {option.metavar}")


def _help(option: SettingOption) -> str:
    return f"{option.help} [{option.default_text}]" if option.default_text else f"{option.help}"


def _entries(meanings: Mapping[str, str]) -> Iterator[str]:
    """Yield a list of terms, each with its meaning."""
    for term, meaning in meanings.items():
        yield f".TP\n.B {_roff(term)}\n{_roff(meaning)}"


def _roff(text: str) -> str:
    """Return *text* escaped for roff; text between backquotes becomes bold."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    escaped = escaped.replace('"', "\\(dq").strip()  # macros remove quotation marks
    escaped = re.sub(r"`([^`]+)`", r"\\fB\1\\fP", escaped)
    return "\n".join(
        f"\\&{line}" if line.startswith((".", "'")) else line for line in escaped.splitlines()
    )
