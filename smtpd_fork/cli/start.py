"""The start, in its order, and nothing left over when a step fails.

Options, bind, pid-file opened and locked, handlers loaded, privileges dropped, detach, pid
written, serve. What takes root comes before the user changes, what belongs to that user after;
what can fail comes before the detaching, so that the error reaches the caller.
"""

from __future__ import annotations

import logging
import os
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from smtpd_fork.cli.serve import serve
from smtpd_fork.cli.startup_resources import StartupResources
from smtpd_fork.cli.stop_watchdog import StopWatchdog
from smtpd_fork.config import RESERVED_DESCRIPTORS
from smtpd_fork.daemon import (
    Invocation,
    Notifier,
    Word,
    detach,
    drop_privileges,
    look_up_user,
    passed_sockets,
    raise_descriptor_limit,
)
from smtpd_fork.dialogue import Tally
from smtpd_fork.errors import ExitStatus, OperatingSystemError, SmtpdForkError, error_origin
from smtpd_fork.gate import limits_of, networks_of
from smtpd_fork.handlers import load_handlers
from smtpd_fork.listeners import resolver_of
from smtpd_fork.observe.logs import set_up_logging
from smtpd_fork.sanitizer import shown_handler
from smtpd_fork.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_fork.cli.setting_sources import SettingSources
    from smtpd_fork.config import DaemonConfig
    from smtpd_fork.handlers import Chain

__all__ = ["check_current_directory", "start"]

log = logging.getLogger("smtpd_fork.daemon")

MUTE = "smtpd-fork: warning: there is no syslog here, nothing is logged; name a place with --log-to"
"""Said where the log would be: on the terminal of who starts a daemon that detaches."""


def start(sources: SettingSources, resources: StartupResources | None = None) -> ExitStatus:
    """Be the daemon that *sources* describes, until it is told to stop.

    :param resources: how the process was started, and what it was left
    :returns: how it ended
    :raises SmtpdForkError: it cannot be; with ``settings`` that are to blame, and nothing done
    """
    config = sources.build()
    resources = resources or StartupResources(Invocation.current())
    with resources.at_exit:
        server = _set_up(config, resources)
        if unknown := sources.unknown_variables():
            resources.warnings.append(f"no option has the name of {', '.join(unknown)}")
        word = detach() if config.detach else None
        if resources.successor is not None:
            resources.successor.began()
        try:
            return _serve(sources, config, resources, server, word)
        except SmtpdForkError as error:
            if word is None:
                raise
            reason = sources.explain(error)
            if resources.successor is not None:
                resources.successor.failed(reason)
            log.error("%s", reason)  # noqa: TRY400 - one line, as on a terminal
            # Cleaned up first, reported afterwards: the caller finds nothing left.
            resources.at_exit.close()
            word.failed(sources.status(error), f"smtpd-fork: {reason}")
            os._exit(sources.status(error))


def _serve(
    sources: SettingSources,
    config: DaemonConfig,
    resources: StartupResources,
    server: Server,
    word: Word | None,
) -> ExitStatus:
    if resources.pid_file is not None and resources.successor is None:  # else it is another's still
        with error_origin("pid_file"):
            resources.pid_file.write(os.getpid())
    if resources.log_queue is not None:
        resources.log_queue.begin()  # after the last fork, which no thread survives
    for warning in resources.warnings:
        log.warning("%s", warning)
    ready = None
    if word is not None:
        ready = partial(word.serving, MUTE if resources.log_queue is None else "")
    # It begins a thread, so after the last fork as well.
    watchdog = StopWatchdog(
        lambda: server.config.shutdown_timeout, lambda: resources.at_exit.pop_all().close()
    )
    return serve(server, sources, config, resources, watchdog, ready=ready)


def _set_up(config: DaemonConfig, resources: StartupResources) -> Server:
    """Do all that comes before the detaching."""
    check_current_directory()
    # Before any file is opened: the descriptors that were passed are those that are open now.
    passed = passed_sockets(os.environ)
    resources.notifier = Notifier.of_environment(os.environ)
    with error_origin("log_to"):
        resources.log_queue = set_up_logging(config)
    if resources.log_queue is not None:
        resources.at_exit.callback(
            resources.log_queue.end
        )  # the last: it logs what ends until then
    descriptors = raise_descriptor_limit(_wanted_descriptors(config))
    account = None
    if config.user is not None:
        with error_origin("user"):
            account = look_up_user(config.user, may_be_it=resources.successor is not None)
    limits = limits_of(config)
    networks_of("proxy_trust", config.proxy_trust)  # a fault shows before anything is bound
    networks_of("probe_from", config.probe_from)
    with error_origin("dnsbl", "rdns"):
        resolver_of(config)
    resources.open_listeners(config, passed)
    with error_origin("control"):
        resources.open_control(config.control)
    with error_origin("metrics"):
        resources.open_metrics(config)
    with error_origin("pid_file"):
        resources.open_pid_file(config.pid_file)
    resources.hire_janitor(account)
    with error_origin("handler"):
        chain = load_handlers(config.handler)
    with error_origin("tls_cert", "tls_key", "tls_client_ca"):
        server = Server(
            chain,
            config=config,
            limits=limits,
            listeners=resources.listeners,
            tally=Tally(timing=bool(resources.metrics)),
        )
    if account is not None:
        with error_origin("user"):
            drop_privileges(account)
    with error_origin("handler"):
        chain.prepare()
    resources.warnings += _warnings(config, chain, descriptors)
    return server


def check_current_directory() -> None:
    """See that relative paths can be resolved.

    :raises OperatingSystemError: the current directory was removed
    """
    try:
        Path.cwd()
    except OSError as error:
        raise OperatingSystemError(f"cannot use the current folder: {error.strerror}") from None


def _wanted_descriptors(config: DaemonConfig) -> int:
    # With probes, the clients that are deferred wait in here.
    waiting = max(0, config.backlog) if config.probe_from and not config.when_full.refuse else 0
    return config.limit_connections + waiting + RESERVED_DESCRIPTORS


def _warnings(config: DaemonConfig, chain: Chain, descriptors: int) -> Iterator[str]:
    """Say what can be, and is likely not meant."""
    if os.geteuid() == 0:
        yield "running as root; name a user with --user"
    if descriptors < (wanted := _wanted_descriptors(config)):
        yield (
            f"{config.limit_connections} sessions need {wanted} open files, and the system allows "
            f"{descriptors} (RLIMIT_NOFILE)"
        )
    for handler in chain.unreachable:
        text = config.handler[chain.handlers.index(handler)]
        yield f"the handler {shown_handler(text)!r} never sees a message: a sink comes before it"
    if config.detach and threading.active_count() > 1:
        yield "a handler began threads when it was loaded; they do not survive --detach"
