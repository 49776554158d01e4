"""The start, in its order, and nothing left over when a step fails.

Options, bind, pid-file opened and locked, handlers loaded, privileges dropped, detach, pid
written, serve. What takes root comes before the user changes, what belongs to that user after;
what can fail comes before the detaching, so that it fails in front of whoever started it.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from smtpd_fork.cli.ending import Ending
from smtpd_fork.cli.holdings import Holdings
from smtpd_fork.cli.inherit import control_of, listeners_of, metrics_of, pid_file_of
from smtpd_fork.cli.serve import serve
from smtpd_fork.config import RESERVED_DESCRIPTORS
from smtpd_fork.daemon import (
    Account,
    Invocation,
    Janitor,
    Notifier,
    Word,
    detach,
    drop_privileges,
    look_up_user,
    passed_sockets,
    raise_descriptor_limit,
)
from smtpd_fork.errors import ExitStatus, OperatingSystemError, SmtpdForkError, error_origin
from smtpd_fork.gate import limits_of, networks_of
from smtpd_fork.handlers import load_handlers
from smtpd_fork.listeners import dns_checks_of
from smtpd_fork.observe.logs import set_up_logging
from smtpd_fork.sanitizer import shown_handler
from smtpd_fork.server import Server
from smtpd_fork.smtp import Tally

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from smtpd_fork.cli.given import Given
    from smtpd_fork.config import DaemonConfig
    from smtpd_fork.handlers import Chain
    from smtpd_fork.listeners import Listener
    from smtpd_fork.observe.logs import LogQueue

__all__ = ["start"]

log = logging.getLogger("smtpd_fork.daemon")

MUTE = "smtpd-fork: warning: there is no syslog here, nothing is logged; name a place with --log-to"
"""Said where the log would be: on the terminal of who starts a daemon that detaches."""


class _Prepared(NamedTuple):
    """What is there when nothing can fail any more but the last steps."""

    server: Server
    warnings: list[str]
    """Not told before the start is sure: of a start that fails, the fault is the one line."""
    log_queue: LogQueue | None
    """Who writes the log; None if nobody does."""


def start(given: Given, holdings: Holdings | None = None) -> ExitStatus:
    """Be the daemon that *given* describes, until it is told to stop.

    :param holdings: how the process was started, and what it was left
    :returns: how it ended
    :raises SmtpdForkError: it cannot be; with ``settings`` that are to blame, and nothing done
    """
    config = given.build()
    holdings = holdings or Holdings(Invocation.current())
    with ExitStack() as left_over:
        prepared = _set_up(config, holdings, left_over)
        if strays := given.strays():
            prepared.warnings.append(f"no option has the name of {', '.join(strays)}")
        word = detach() if config.detach else None
        if holdings.successor is not None:
            holdings.successor.began()
        try:
            return _serve(given, config, holdings, prepared, word, left_over)
        except SmtpdForkError as error:
            if word is None:
                raise
            reason = given.explain(error)
            if holdings.successor is not None:
                holdings.successor.failed(reason)
            log.error("%s", reason)  # noqa: TRY400 - one line, as on a terminal
            # Whoever hears of it finds nothing left: cleaned up first, told afterwards.
            left_over.close()
            word.failed(given.status(error), f"smtpd-fork: {reason}")
            os._exit(given.status(error))


def _serve(
    given: Given,
    config: DaemonConfig,
    holdings: Holdings,
    prepared: _Prepared,
    word: Word | None,
    left_over: ExitStack,
) -> ExitStatus:
    if holdings.pid_file is not None and holdings.successor is None:  # else it is another's still
        with error_origin("pid_file"):
            holdings.pid_file.write(os.getpid())
    if prepared.log_queue is not None:
        prepared.log_queue.begin()  # after the last fork, which no thread survives
    for warning in prepared.warnings:
        log.warning("%s", warning)
    ready = None
    if word is not None:
        ready = partial(word.serving, MUTE if prepared.log_queue is None else "")
    server = prepared.server
    # It begins a thread, so after the last fork as well.
    ending = Ending(
        lambda: server.config.shutdown_timeout, clean_up=lambda: left_over.pop_all().close()
    )
    return serve(server, given, config, holdings, ending, ready=ready)


def _set_up(config: DaemonConfig, holdings: Holdings, left_over: ExitStack) -> _Prepared:
    """Do all that comes before the detaching."""
    _check_folder()
    # Before any file is opened: the descriptors that were passed are those that are open now.
    passed = passed_sockets(os.environ)
    holdings.notifier = Notifier.of_environment(os.environ)
    with error_origin("log_to"):
        log_queue = set_up_logging(config)
    if log_queue is not None:
        left_over.callback(log_queue.end)  # first in, last out: what ends is told until then
    descriptors = raise_descriptor_limit(_wanted_descriptors(config))
    account = None
    if config.user is not None:
        with error_origin("user"):
            account = look_up_user(config.user, may_be_it=holdings.successor is not None)
    limits = limits_of(config)
    networks_of("proxy_trust", config.proxy_trust)  # a fault shows before anything is bound
    networks_of("probe_from", config.probe_from)
    with error_origin("dnsbl", "rdns"):
        dns_checks_of(config)
    listeners = listeners_of(config, holdings, passed)
    left_over.callback(_close_all, [*listeners, *holdings.dropped])
    with error_origin("control"):
        holdings.control = control_of(config.control, holdings)
    if holdings.control is not None:
        left_over.callback(holdings.control.close)
    with error_origin("metrics"):
        holdings.metrics = metrics_of(config, holdings)
    left_over.callback(_close_all, holdings.metrics)
    with error_origin("pid_file"):
        holdings.pid_file = pid_file_of(config.pid_file, holdings)
    if holdings.pid_file is not None:
        left_over.callback(holdings.pid_file.remove)
    listening = (*listeners, *holdings.metrics, holdings.control)
    on_paths = [each for each in listening if each is not None]
    if (janitor := _janitor(account, on_paths, holdings)) is not None:
        holdings.janitor = janitor
        left_over.callback(janitor.dismiss)
    with error_origin("handler"):
        chain = load_handlers(config.handler)
    with error_origin("tls_cert", "tls_key", "tls_client_ca"):
        tally = Tally(timing=bool(holdings.metrics))
        server = Server(chain, config=config, limits=limits, listeners=listeners, tally=tally)
    if account is not None:
        with error_origin("user"):
            drop_privileges(account)
    with error_origin("handler"):
        chain.prepare()
    warnings = [*holdings.warnings, *_warnings(config, chain, descriptors)]
    return _Prepared(server, warnings, log_queue)


def _check_folder() -> None:
    """See that relative paths mean something.

    :raises OperatingSystemError: the current folder was removed
    """
    try:
        Path.cwd()
    except OSError as error:
        raise OperatingSystemError(f"cannot use the current folder: {error.strerror}") from None


def _close_all(listeners: Sequence[Listener]) -> None:
    for listener in listeners:
        listener.close()


def _janitor(
    account: Account | None, listeners: Sequence[Listener], holdings: Holdings
) -> Janitor | None:
    """Keep the right to remove what the user will not be able to; None if that takes nobody."""
    if holdings.successor is not None and holdings.successor.handover.janitor is not None:
        return Janitor.inherit(holdings.successor.handover.janitor)
    if account is None or os.geteuid() != 0:
        return None
    for listener in listeners:
        if listener.path is not None and not listener.inherited:
            os.chown(listener.path, account.uid, account.gid, follow_symlinks=False)
    if holdings.pid_file is None:
        return Janitor.hire(listeners)
    return Janitor.hire([*listeners, holdings.pid_file], keep=holdings.pid_file.descriptor)


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
