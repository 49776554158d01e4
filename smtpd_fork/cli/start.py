"""The steps of a start, in order; a step that fails undoes those before it.

The steps are: read options, bind sockets, open and lock the pid file, load handlers, drop
privileges, detach, write the pid, serve. Steps that need root come before the change of the user,
steps of that user after it. Steps that may fail come before the detaching, so that the caller gets
the error.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from smtpd_fork.cli.serve import Serving
from smtpd_fork.cli.startup_resources import StartupResources
from smtpd_fork.cli.stop_watchdog import StopWatchdog
from smtpd_fork.config import RESERVED_DESCRIPTORS, DaemonConfig
from smtpd_fork.daemon import (
    Account,
    Invocation,
    Notifier,
    StartupReport,
    detach,
    drop_privileges,
    look_up_user,
    passed_sockets,
    raise_descriptor_limit,
    unreadable_library,
)
from smtpd_fork.dialogue import Tally
from smtpd_fork.errors import ExitStatus, OperatingSystemError, SmtpdForkError, error_origin
from smtpd_fork.gate import Limits, TrustedHosts, limits_of, networks_of
from smtpd_fork.handlers import Chain, load_handlers, modules_of
from smtpd_fork.listeners import resolver_of, wanted_addresses
from smtpd_fork.observe.logs import set_up_logging
from smtpd_fork.server import Server
from smtpd_fork.supervisor.processes import END_SECONDS, Processes
from smtpd_fork.units import format_size

if TYPE_CHECKING:
    from smtpd_fork.cli.setting_sources import SettingSources

__all__ = ["check_current_directory", "likely_mistakes", "open_relay", "start", "upgrade_warning"]

log = logging.getLogger("smtpd_fork.daemon")

NO_SYSLOG = (
    "smtpd-fork: warning: no syslog service is available, so nothing is logged; use --log-to"
)
"""Printed on the terminal from which a daemon that cannot log is started with --detach."""


def start(sources: SettingSources, resources: StartupResources | None = None) -> ExitStatus:
    """Run the daemon with the settings of *sources* until it stops.

    :param resources: how the process was started, and what it inherited
    :returns: the exit status
    :raises SmtpdForkError: the start failed, without effects; ``settings`` are those that caused it
    """
    resources = resources or StartupResources(Invocation.current())
    if (position := resources.supervised) is not None:
        sources.share = (position.number, position.of)
    config = sources.build()
    with resources.at_exit:
        server = _set_up(config, resources, sources.directory)
        if position is None:
            resources.warnings += sources.unknown_variables()
        report = detach() if config.detach and position is None else None
        if config.detach and position is not None:
            os.chdir("/")  # the supervisor has detached
        if resources.successor is not None:
            resources.successor.send_pid()
        try:
            return _serve(sources, config, resources, server, report)
        except SmtpdForkError as error:
            if report is None:
                raise
            _fail(sources, resources, report, error)
        except Exception as error:
            log.critical("internal error", exc_info=True)
            failure = _internal_error(config, error)
            if report is None:
                raise failure from error
            _fail(sources, resources, report, failure)


def _fail(
    sources: SettingSources,
    resources: StartupResources,
    report: StartupReport,
    error: SmtpdForkError,
) -> NoReturn:
    """End a detached process with *error*; report it to the old process and the parent process."""
    reason, status = sources.explain(error), sources.status(error)
    if resources.successor is not None:
        resources.successor.failed(reason)
    log.error("%s", reason)
    # Cleaned up before the report, so that the caller finds no files or sockets left.
    resources.at_exit.close()
    report.failed(status, f"smtpd-fork: {reason}")
    os._exit(status)


def _internal_error(config: DaemonConfig, error: Exception) -> SmtpdForkError:
    """Return the error for an exception of this program or a library, as one line."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, ImportError | PermissionError) and (path := unreadable_library()):
        reason += f"; user {config.user} cannot read {path} (Python's library)"
    status = int(ExitStatus.SOFTWARE)
    text = f"the daemon exited during startup (status {status}): {reason}; traceback in the log"
    return SmtpdForkError(text)


def _serve(
    sources: SettingSources,
    config: DaemonConfig,
    resources: StartupResources,
    server: Server | Processes,
    report: StartupReport | None,
) -> ExitStatus:
    # In an upgrade, the pid file still belongs to the old process.
    if resources.pid_file is not None and resources.successor is None:
        with error_origin("pid_file"):
            resources.pid_file.write(os.getpid())
    if resources.log_queue is not None:
        resources.log_queue.begin()  # this starts a thread, so it comes after the last fork
    if isinstance(server, Server) and _is_first(resources):  # the first process logs it for all
        _log_warnings(server, resources)
    warning = NO_SYSLOG if resources.log_queue is None else ""

    def ready() -> None:
        if isinstance(server, Processes):
            _log_warnings(server, resources)
        if report is not None:
            report.serving(warning)

    # This starts a thread as well.
    more = END_SECONDS if isinstance(server, Processes) else 0.0
    watchdog = StopWatchdog(
        lambda: server.config.shutdown_timeout + more, lambda: resources.at_exit.pop_all().close()
    )
    return Serving(server, sources, config, resources, watchdog).run(ready)


def _is_first(resources: StartupResources) -> bool:
    return resources.supervised is None or resources.supervised.number == 1


def _log_warnings(server: Server | Processes, resources: StartupResources) -> None:
    """Log the warnings of the start, and the destination of mail."""
    chain = server.chain
    if isinstance(server, Server) and chain.destination and chain.accepts_any_recipient:
        log.info("mail for any recipient, from any client, goes to %s", chain.destination)
    for warning in resources.warnings:
        log.warning("%s", warning)


def _set_up(
    config: DaemonConfig, resources: StartupResources, directory: Path | None
) -> Server | Processes:
    """Carry out the steps before the detaching."""
    check_current_directory()
    # Before files are opened, which could have the numbers of passed descriptors.
    passed = passed_sockets(os.environ)
    resources.notifier = Notifier.from_environment(os.environ)
    account = _account(config, resources)
    _open_log(config, resources, account)
    descriptors = raise_descriptor_limit(_wanted_descriptors(config))
    limits = _checked_limits(config)
    resources.open_sockets_and_files(config, passed)
    resources.start_cleanup_process(account)
    if config.processes > 1 and resources.supervised is None:
        return _set_up_supervisor(config, limits, resources, account)
    # A .pyc file has the time of its module in seconds, so it could hide a change of this second.
    sys.dont_write_bytecode |= config.reload_handlers
    with error_origin("handler"):
        chain = load_handlers(config.handler, directory, seconds=config.handler_timeout)
    _import_before_privileges_are_dropped(config)
    tally = Tally(timing=config.metrics is not None)
    server = Server(chain, config=config, limits=limits, listeners=resources.listeners, tally=tally)
    if account is not None:
        with error_origin("user"):
            drop_privileges(account)
    with error_origin("handler"):
        chain.prepare()
    resources.warnings += _warnings(config, descriptors)
    resources.warnings += likely_mistakes(config, chain)
    if relaying := open_relay(config, chain):
        resources.warnings.append(relaying)
    if unreadable := upgrade_warning(config):
        resources.warnings.append(unreadable)
    return server


def _set_up_supervisor(
    config: DaemonConfig, limits: Limits, resources: StartupResources, account: Account | None
) -> Processes:
    """Carry out the remaining steps of a supervisor; its processes load the handlers and TLS."""
    _import_before_privileges_are_dropped(config)
    if account is not None:
        with error_origin("user"):
            drop_privileges(account)
    directory = resources.invocation.directory if config.detach else None
    old = resources.old_supervisor()
    return Processes(config, limits, resources.listeners, resources.invocation, directory, old)


def _import_before_privileges_are_dropped(config: DaemonConfig) -> None:
    """Import modules that are used later, as USER may not be able to read their files."""
    modules = ["encodings.idna", "encodings.punycode", config.loop, "concurrent.futures.thread"]
    if config.metrics is not None:
        modules += ["smtpd_fork.observe.status_server"]
    for name in modules:
        import_module(name)


def _open_log(config: DaemonConfig, resources: StartupResources, account: Account | None) -> None:
    owner = None if account is None else (account.uid, account.gid)
    with error_origin("log_to"):
        resources.log_queue = set_up_logging(config, owner)
    if resources.log_queue is not None:
        # Called last, so that the log contains the messages of all other callbacks.
        resources.at_exit.callback(resources.log_queue.end)


@error_origin("user")
def _account(config: DaemonConfig, resources: StartupResources) -> Account | None:
    if config.user is None:
        return None
    return look_up_user(config.user, allow_current=resources.successor is not None)


def _checked_limits(config: DaemonConfig) -> Limits:
    """Return the limits of the gate; report errors in networks or DNS before sockets are bound."""
    limits = limits_of(config)
    networks_of("probe_from", config.probe_from)
    for name in ("proxy_trust", "xclient_trust", "xforward_trust"):
        TrustedHosts.of(name, getattr(config, name))
    with error_origin("dnsbl", "rdns"):
        resolver_of(config)
    return limits


def check_current_directory() -> None:
    """Check that relative paths can be resolved.

    :raises OperatingSystemError: the current directory was removed
    """
    try:
        Path.cwd()
    except OSError as error:
        raise OperatingSystemError(f"cannot use the current directory: {error.strerror}") from None


def _wanted_descriptors(config: DaemonConfig) -> int:
    # With --probe-from, waiting clients are accepted already, and need a descriptor.
    waiting = max(0, config.backlog) if config.probe_from and not config.when_full.refuse else 0
    return config.limit_connections + waiting + RESERVED_DESCRIPTORS


def _warnings(config: DaemonConfig, descriptors: int) -> Iterator[str]:
    """Yield warnings about the privileges, the limits and the threads of this process."""
    if os.geteuid() == 0:
        yield "running as root; name a user with --user"
    if descriptors < (wanted := _wanted_descriptors(config)):
        yield (
            f"{config.limit_connections} sessions need {wanted} open files, and the system allows "
            f"{descriptors} (RLIMIT_NOFILE)"
        )
    if config.detach and threading.active_count() > 1:
        yield "a handler started threads when it was loaded; they end with --detach"


def likely_mistakes(config: DaemonConfig, chain: Chain) -> Iterator[str]:
    """Yield warnings about settings that are valid, but are probably a mistake."""
    if not config.proxy_trust:
        for address in wanted_addresses(config):
            if address.proxy:
                yield f"no --proxy-trust, so every client of {address} will be refused"
    size, buffered = config.max_message_size, config.max_buffered
    if size > buffered > 0:
        sizes = f"{format_size(size)} > {format_size(buffered)}"
        yield f"--max-message-size is larger than --max-buffered ({sizes}): such messages get 452"
    if config.fleet and not config.fleet_connections and not _shares_limits(config):
        yield (
            "--fleet has no effect on limits: -m, --max-from-net, --rate and --rate-net are off, "
            "shares or local:, and there is no --fleet-connections"
        )
    if config.reload_handlers and not modules_of(config.handler):
        yield "--reload-handlers has no effect: no handler is a module:attr"
    yield from chain.warnings


def _shares_limits(config: DaemonConfig) -> bool:
    names = ("max_from_ip", "max_from_net", "rate", "rate_net")
    some: Any = {name: getattr(config, name) for name in names}
    return any(Limits(**some).fleet_limits())


def open_relay(config: DaemonConfig, chain: Chain) -> str:
    """Return a warning if any client can send mail to any destination; otherwise ""."""
    if not chain.is_open_relay:
        return ""
    public = [each for each in wanted_addresses(config) if not each.local]
    if not public:
        return ""
    return (
        f"open relay: any client of {public[0]} can send mail to any destination; put the handler "
        "accept before relay, or a handler that has controls_relaying = True"
    )


def upgrade_warning(config: DaemonConfig) -> str:
    """Return a warning if the user of ``--user`` cannot read the libraries for an upgrade.

    Otherwise the result is "".
    """
    if config.user is None or not (path := unreadable_library()):
        return ""
    return (
        f"an upgrade (SIGUSR2) will fail: user {config.user} cannot read {path} (Python's library)"
    )
