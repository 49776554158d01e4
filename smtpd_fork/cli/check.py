"""``smtpd-fork check``: checks whether the daemon can start with these settings.

All checks are made, also after an error. The command serves no client, and leaves no files or
sockets. It can run while the daemon with the same settings runs: then addresses and files that the
daemon uses are not tested.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smtpd_fork.cli.base_command import BaseCommand, ExplainedError, settings_of
from smtpd_fork.cli.control.connection import Connection
from smtpd_fork.cli.metrics_listener import wanted_metrics
from smtpd_fork.cli.start import (
    check_current_directory,
    likely_mistakes,
    open_relay,
    upgrade_warning,
)
from smtpd_fork.cli.startup_resources import check_overlaps
from smtpd_fork.daemon import Account, PidFile, listening_sockets, look_up_user, run_as
from smtpd_fork.errors import (
    CannotCreateError,
    ExitStatus,
    HandlerError,
    SmtpdForkError,
    error_origin,
)
from smtpd_fork.fleet.probe import probe
from smtpd_fork.gate import TrustedHosts, limits_of, networks_of
from smtpd_fork.handlers import Chain, load_handlers
from smtpd_fork.listeners import Address, resolver_of, try_to_bind, wanted_addresses
from smtpd_fork.observe.logs import check_log
from smtpd_fork.server import Server
from smtpd_fork.supervisor.shares import divided

if TYPE_CHECKING:
    from smtpd_fork.cli.setting_sources import SettingSources
    from smtpd_fork.config import DaemonConfig

__all__ = ["check"]

_HELP = """\
Check whether the daemon can start with these settings. Files are read, keys matched with
certificates, handlers imported, and addresses bound briefly; no client is served.
"""


class _Findings:
    """The results of the checks.

    :ivar lines: the errors
    :ivar warnings: the warnings
    :ivar skipped: addresses and files that are not tested, as the running daemon uses them
    :ivar notes: other information for the administrator
    :ivar status: exit status of the first error
    """

    def __init__(self, sources: SettingSources) -> None:
        self._sources = sources
        self.lines: list[str] = []
        self.warnings: list[str] = []
        self.skipped: list[str] = []
        self.notes: list[str] = []
        self.status = ExitStatus.OK

    @property
    def directory(self) -> Path | None:
        """The directory for relative paths, if it is not the current one."""
        return self._sources.directory

    @contextmanager
    def errors_of(self, *settings: str) -> Iterator[None]:
        """Record an error that is raised in this context; *settings* are those that cause it."""
        try:
            with error_origin(*settings):
                yield
        except SmtpdForkError as error:
            line = self._sources.explain(error)
            if line not in self.lines:
                self.lines.append(line)
            self.status = self.status or self._sources.status(error)


class _Running:
    """The daemon that runs with these settings, found by its pid file or its control socket.

    :ivar pid: its process id; None if no daemon runs
    """

    def __init__(self, config: DaemonConfig) -> None:
        self.pid = _pid_by_file(config) or _pid_by_control(config)
        self._held: set[int | str] | None = None
        with suppress(OSError):  # another user's process, or no /proc: unknown
            self._held = listening_sockets(self.pid) if self.pid is not None else set()

    def may_listen_on(self, address: Address) -> bool:
        """Return whether the daemon listens on *address*, or this cannot be determined."""
        if self._held is None:
            return True
        return (address.port if address.path is None else str(address.path)) in self._held

    def skipped(self, names: str) -> str:
        """Return the line for addresses and files that are not tested.

        :param names: their names, joined with commas
        """
        front = "held" if self._held is not None else "perhaps held"
        return f"{front} by the running daemon (pid {self.pid}), skipped: {names}"


def _pid_by_file(config: DaemonConfig) -> int | None:
    return None if config.pid_file is None else PidFile.holder(config.pid_file)


def _pid_by_control(config: DaemonConfig) -> int | None:
    if config.control is None:
        return None
    try:
        with closing(Connection(config.control)) as connection:
            return int(connection.ask_for_json("status")["pid"])
    except (SmtpdForkError, KeyError, TypeError, ValueError):
        return None


def _check_settings(config: DaemonConfig, findings: _Findings, *, running: bool) -> None:
    account: Account | None = None
    if config.user is not None:
        with findings.errors_of("user"):
            account = look_up_user(config.user)
    with findings.errors_of("log_to"):
        check_log(config)
    with findings.errors_of():
        limits_of(config)
    with findings.errors_of():
        networks_of("probe_from", config.probe_from)
    for name in ("proxy_trust", "xclient_trust", "xforward_trust"):
        with findings.errors_of():
            TrustedHosts.of(name, getattr(config, name))
    with findings.errors_of("dnsbl", "rdns"):
        resolver_of(config)
    _check_addresses(config, findings, running=running)
    if config.fleet is not None:
        with findings.errors_of("fleet"):
            fleet = probe(config)
            findings.warnings += fleet.warnings
            findings.notes += [fleet.found] if fleet.found else []
    with findings.errors_of("handler"):
        chain = load_handlers(config.handler, findings.directory, seconds=config.handler_timeout)
        with findings.errors_of():
            Server(chain, config=config)
        with findings.errors_of("listen", "port"):
            smallest_share = divided(config, config.processes, config.processes)
            findings.warnings += likely_mistakes(smallest_share, chain)
            _check_relaying(config, chain)
        if account is not None or config.user is None:
            _check_as_user(config, findings, account, chain)


def _check_relaying(config: DaemonConfig, chain: Chain) -> None:
    with error_origin("handler"):
        if relaying := open_relay(config, chain):
            raise HandlerError(relaying)


def _check_as_user(
    config: DaemonConfig, findings: _Findings, account: Account | None, chain: Chain
) -> None:
    """Run the checks that depend on the user to which the daemon changes."""
    if warning := run_as(account, lambda: upgrade_warning(config)):
        findings.warnings.append(warning)
    if reason := run_as(account, lambda: _text_of(chain.check)):
        raise CannotCreateError(reason)


def _text_of(check: Callable[[], None]) -> str:
    try:
        check()
    except CannotCreateError as error:
        return str(error)
    return ""


def _check_addresses(config: DaemonConfig, findings: _Findings, *, running: bool) -> None:
    """Test addresses, control socket and pid file, except those that the running daemon uses."""
    daemon = _Running(config)
    addresses: dict[tuple[str, ...], list[Address]] = {}
    with findings.errors_of():
        check_overlaps(config)
    with findings.errors_of("listen", "port"):
        addresses["listen", "port"] = wanted_addresses(config)
    if config.control is not None:
        addresses["control",] = [Address(path=Path(config.control).absolute())]
    with findings.errors_of("metrics"):
        if (metrics := wanted_metrics(config)) is not None:
            addresses["metrics",] = [metrics]
    for settings, wanted in addresses.items():
        free = [] if running else [each for each in wanted if not daemon.may_listen_on(each)]
        findings.skipped += [str(each) for each in wanted if daemon.may_listen_on(each)]
        with findings.errors_of(*settings):
            try_to_bind(free, findings.warnings.append)
    if config.pid_file is not None and not running:
        if PidFile.holder(config.pid_file) is not None:
            findings.skipped.append(str(Path(config.pid_file).absolute()))
        else:
            with findings.errors_of("pid_file"):
                _check_pid_file(Path(config.pid_file))
    if findings.skipped:
        skipped = ", ".join(findings.skipped)
        findings.skipped = [daemon.skipped(skipped)]


def _check_pid_file(path: Path) -> None:
    if os.path.lexists(path):
        PidFile.acquire(path).close()  # close() does not change the file
        return
    path = path.absolute()
    if not path.parent.exists():
        reason = f"directory {path.parent} does not exist"
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        reason = os.strerror(errno.EACCES)
    else:
        return
    raise CannotCreateError(f"cannot write pid file {path}: {reason}")


def _check(*, running: bool, **_: Any) -> None:
    with settings_of(click.get_current_context()) as sources:
        findings = _Findings(sources)
        config = sources.build()
        check_current_directory()
        with _warnings_of_handlers():
            _check_settings(config, findings, running=running)
    for line in (*findings.skipped, *findings.notes):
        click.echo(line)
    for warning in [*findings.warnings, *sources.unknown_variables()]:
        click.echo(f"warning: {warning}")
    if findings.lines:
        for line in findings.lines[:-1]:
            sys.stderr.write(f"smtpd-fork: {line}\n")
        raise ExplainedError(findings.lines[-1], findings.status)
    click.echo("configuration OK")


@contextmanager
def _warnings_of_handlers() -> Iterator[None]:
    """Print the warnings that handlers log while they are loaded and checked."""
    shown = logging.StreamHandler(sys.stdout)
    shown.setLevel(logging.WARNING)
    shown.setFormatter(logging.Formatter("warning: %(message)s"))
    logging.getLogger().addHandler(shown)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(shown)


check = BaseCommand(
    "check",
    params=[
        click.Option(
            ["--running"], is_flag=True,
            help="Do not report addresses and pid file as in use: a daemon runs with these "
            "settings.",
        ),
    ],
    callback=_check,
    help=_HELP,
)  # fmt: skip
