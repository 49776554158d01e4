"""``smtpd-fork check``: sees whether a start would succeed, without one.

Everything is checked, whatever was found before. Nothing is left behind, and no client is served.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smtpd_fork.cli.base_command import BaseCommand, Fault, settings_of
from smtpd_fork.cli.metrics_listener import wanted_metrics
from smtpd_fork.cli.start import check_current_directory
from smtpd_fork.daemon import PidFile, look_up_user
from smtpd_fork.errors import (
    CannotCreateError,
    NotPermittedError,
    SmtpdForkError,
    error_origin,
)
from smtpd_fork.gate import limits_of, networks_of
from smtpd_fork.handlers import load_handlers
from smtpd_fork.listeners import resolver_of, try_to_bind, wanted_addresses
from smtpd_fork.observe.logs import check_log
from smtpd_fork.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_fork.cli.setting_sources import SettingSources
    from smtpd_fork.config import DaemonConfig

__all__ = ["check"]

_HELP = """\
See whether the daemon could start with these settings: files are read, keys tried on their
certificates, handlers imported, addresses bound for a moment. Nobody is served.
"""


class _Findings:
    """What is wrong, as far as it was found.

    :param sources: the settings, and where they came from
    """

    def __init__(self, sources: SettingSources) -> None:
        self._sources = sources
        self.lines: list[str] = []
        self.warnings: list[str] = []
        self.status = 0

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
            self.status = self.status or int(self._sources.status(error))


def _look(config: DaemonConfig, findings: _Findings, *, running: bool) -> None:
    with findings.of():
        limits_of(config)
    with findings.of():
        networks_of("proxy_trust", config.proxy_trust)
    with findings.of("dnsbl", "rdns"):
        resolver_of(config)
    with findings.of("log_to"):
        check_log(config)
    if config.user is not None:
        with findings.of("user"):
            look_up_user(config.user)
            if os.geteuid() != 0:
                raise NotPermittedError(f"only root can become {config.user}")
    with findings.of("handler"):
        chain = load_handlers(config.handler)
        with findings.of("tls_cert", "tls_key", "tls_client_ca"):
            Server(chain, config=config)
    with findings.of("listen", "port"):
        addresses = wanted_addresses(config)
        if not running:
            try_to_bind(addresses, findings.warnings.append)
    with findings.of("metrics"):
        metrics = wanted_metrics(config)
        if metrics is not None and not running:
            try_to_bind([metrics], findings.warnings.append)
    if config.pid_file is not None and not running:
        with findings.of("pid_file"):
            _check_pid_file(Path(config.pid_file))


def _check_pid_file(path: Path) -> None:
    if path.exists():
        # A running process holds it; the file is left as it was.
        PidFile.acquire(path).close()
    elif not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise CannotCreateError(f"cannot write the pid-file {path}: its directory")


def _check(*, running: bool, **values: Any) -> None:
    with settings_of(click.get_current_context(), values) as sources:
        findings = _Findings(sources)
        config = sources.build()
        check_current_directory()
        _look(config, findings, running=running)
    if findings.lines:
        for line in findings.lines[:-1]:
            sys.stderr.write(f"smtpd-fork: {line}\n")
        raise Fault(findings.lines[-1], findings.status)
    for warning in findings.warnings:
        click.echo(f"warning: {warning}")
    for name in sources.unknown_variables():
        click.echo(f"no option has the name of {name}")
    click.echo("nothing is wrong")


check = BaseCommand(
    "check",
    params=[
        click.Option(
            ["--running"], is_flag=True,
            help="A daemon runs with these addresses and this pid-file: they are taken, and that "
            "is no fault.",
        ),
    ],
    callback=_check,
    help=_HELP,
)  # fmt: skip
