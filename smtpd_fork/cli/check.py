"""``smtpd-fork check``: sees whether a start would succeed, without one.

Everything is checked, whatever was found before. Nothing is left behind, and no client is served.
It runs beside the daemon that these settings are of: what that daemon holds is skipped.
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
    user_faults,
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
    """What is wrong, as far as it was found.

    :ivar skipped: what the running daemon holds
    :ivar told: what is good to know
    """

    def __init__(self, sources: SettingSources) -> None:
        self._sources = sources
        self.lines: list[str] = []
        self.warnings: list[str] = []
        self.skipped: list[str] = []
        self.told: list[str] = []
        self.status = ExitStatus.OK

    @property
    def directory(self) -> Path | None:
        """The directory that relative paths are relative to, if it is not the current one."""
        return self._sources.directory

    @contextmanager
    def of(self, *settings: str) -> Iterator[None]:
        """Go on after a fault that these settings led to."""
        try:
            with error_origin(*settings):
                yield
        except SmtpdForkError as error:
            line = self._sources.explain(error)
            if line not in self.lines:
                self.lines.append(line)
            self.status = self.status or self._sources.status(error)


class _Running:
    """The daemon that runs with these settings, by its pid-file or its control socket.

    :ivar pid: None: there is none
    """

    def __init__(self, config: DaemonConfig) -> None:
        self.pid = _pid_by_file(config) or _pid_by_control(config)
        self._held: set[int | str] | None = None
        with suppress(OSError):  # another user's process, or no /proc: nothing is known of it
            self._held = listening_sockets(self.pid) if self.pid is not None else set()

    def may_hold(self, address: Address) -> bool:
        """Whether *address* is the daemon's, or may be, as the system does not tell."""
        if self._held is None:
            return True
        return (address.port if address.path is None else str(address.path)) in self._held

    def skipped(self, what: str) -> str:
        """Return the line that names what is not tried, as the daemon holds it."""
        front = "held" if self._held is not None else "perhaps held"
        return f"{front} by the running daemon (pid {self.pid}), skipped: {what}"


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


def _look(config: DaemonConfig, findings: _Findings, *, running: bool) -> None:
    account: Account | None = None
    if config.user is not None:
        with findings.of("user"):
            account = look_up_user(config.user)
    with findings.of("log_to"):
        check_log(config)
    with findings.of():
        limits_of(config)
    with findings.of():
        networks_of("probe_from", config.probe_from)
    for name in ("proxy_trust", "xclient_trust", "xforward_trust"):
        with findings.of():
            TrustedHosts.of(name, getattr(config, name))
    with findings.of("dnsbl", "rdns"):
        resolver_of(config)
    _look_at_places(config, findings, running=running)
    if config.fleet is not None:
        with findings.of("fleet"):
            fleet = probe(config)
            findings.warnings += fleet.warnings
            findings.told += [fleet.found] if fleet.found else []
    with findings.of("handler"):
        chain = load_handlers(config.handler, findings.directory, seconds=config.handler_timeout)
        with findings.of():
            Server(chain, config=config)
        with findings.of("listen", "port"):
            smallest_share = divided(config, config.processes, config.processes)
            findings.warnings += likely_mistakes(smallest_share, chain)
            _check_relaying(config, chain)
        if account is not None or config.user is None:
            _look_as_user(config, findings, account, chain)


def _check_relaying(config: DaemonConfig, chain: Chain) -> None:
    with error_origin("handler"):
        if relaying := open_relay(config, chain):
            raise HandlerError(relaying)


def _look_as_user(
    config: DaemonConfig, findings: _Findings, account: Account | None, chain: Chain
) -> None:
    """See what the daemon could do once privileges are dropped."""
    if warning := run_as(account, lambda: user_faults(config)):
        findings.warnings.append(warning)
    if fault := run_as(account, lambda: _text_of(chain.check)):
        raise CannotCreateError(fault)


def _text_of(look: Callable[[], None]) -> str:
    try:
        look()
    except CannotCreateError as error:
        return str(error)
    return ""


def _look_at_places(config: DaemonConfig, findings: _Findings, *, running: bool) -> None:
    """Look at addresses, control socket and pid-file; what the running daemon has is skipped."""
    daemon = _Running(config)
    addresses: dict[tuple[str, ...], list[Address]] = {}
    with findings.of():
        check_overlaps(config)
    with findings.of("listen", "port"):
        addresses["listen", "port"] = wanted_addresses(config)
    if config.control is not None:
        addresses["control",] = [Address(path=Path(config.control).absolute())]
    with findings.of("metrics"):
        if (metrics := wanted_metrics(config)) is not None:
            addresses["metrics",] = [metrics]
    for settings, wanted in addresses.items():
        free = [] if running else [each for each in wanted if not daemon.may_hold(each)]
        findings.skipped += [str(each) for each in wanted if daemon.may_hold(each)]
        with findings.of(*settings):
            try_to_bind(free, findings.warnings.append)
    if config.pid_file is not None and not running:
        if PidFile.holder(config.pid_file) is not None:
            findings.skipped.append(str(Path(config.pid_file).absolute()))
        else:
            with findings.of("pid_file"):
                _check_pid_file(Path(config.pid_file))
    if findings.skipped:
        skipped = ", ".join(findings.skipped)
        findings.skipped = [daemon.skipped(skipped)]


def _check_pid_file(path: Path) -> None:
    if os.path.lexists(path):
        PidFile.acquire(path).close()  # the file is left as it was
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
            _look(config, findings, running=running)
    for line in (*findings.skipped, *findings.told):
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
    """Show what handlers log as a warning while they are loaded and checked."""
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
