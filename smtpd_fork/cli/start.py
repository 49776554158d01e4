"""The start, in its order, and nothing left over when a step fails.

Options, bind, pid-file opened and locked, handlers loaded, privileges dropped, detach, pid
written, serve. What takes root comes before the user changes, what belongs to that user after;
what can fail comes before the detaching, so that it fails in front of whoever started it.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from smtpd_fork.cli.door import open_metrics
from smtpd_fork.cli.log import set_up_logging
from smtpd_fork.cli.serve import serve
from smtpd_fork.config import RESERVED_DESCRIPTORS
from smtpd_fork.daemon import (
    Account,
    Janitor,
    PidFile,
    Word,
    detach,
    drop_privileges,
    look_up_user,
    raise_descriptor_limit,
)
from smtpd_fork.errors import OperatingSystemError, SmtpdForkError
from smtpd_fork.gate import limits_of, networks_of
from smtpd_fork.handlers import load_handlers
from smtpd_fork.listeners import open_listeners, vetting_of
from smtpd_fork.server import Server
from smtpd_fork.smtp import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from smtpd_fork.config import DaemonConfig
    from smtpd_fork.handlers import Chain
    from smtpd_fork.listeners import Listener

__all__ = ["start"]

log = logging.getLogger("smtpd_fork.daemon")


@contextmanager
def _blaming(*settings: str) -> Iterator[None]:
    """Note on an error which settings led to it."""
    try:
        yield
    except SmtpdForkError as error:
        error.settings = settings
        raise


class _Prepared(NamedTuple):
    """What is there when nothing can fail any more but the last steps."""

    server: Server
    pid_file: PidFile | None
    warnings: list[str]
    """Not told before the start is sure: of a start that fails, the fault is the one line."""
    metrics: list[Listener]


def start(
    config: DaemonConfig, *, explain: Callable[[SmtpdForkError], str], strays: Sequence[str] = ()
) -> None:
    """Be the daemon that *config* describes, until it is told to stop.

    :param explain: returns an error in words, for the parent of a detached daemon to print
    :param strays: environment variables that name no option, to be warned of
    :raises SmtpdForkError: it cannot be; with ``settings`` that are to blame, and nothing done
    """
    with ExitStack() as left_over:
        prepared = _set_up(config, left_over)
        if strays:
            prepared.warnings.append(f"no option has the name of {', '.join(strays)}")
        word = detach() if config.detach else None
        try:
            _serve(config, prepared, word)
        except SmtpdForkError as error:
            if word is None:
                raise
            reason = explain(error)
            log.error("%s", reason)  # noqa: TRY400 - one line, as on a terminal
            # Whoever hears of it finds nothing left: cleaned up first, told afterwards.
            left_over.close()
            word.failed(error.exit_status, f"smtpd-fork: {reason}")
            os._exit(error.exit_status)


def _serve(config: DaemonConfig, prepared: _Prepared, word: Word | None) -> None:
    if prepared.pid_file is not None:
        with _blaming("pid_file"):
            prepared.pid_file.write(os.getpid())
    for warning in prepared.warnings:
        log.warning("%s", warning)
    ready = word.serving if word is not None else None
    serve(prepared.server, config, ready=ready, metrics=prepared.metrics)


def _set_up(config: DaemonConfig, left_over: ExitStack) -> _Prepared:
    """Do all that comes before the detaching."""
    _check_folder()
    with _blaming("log_to"):
        set_up_logging(config)
    descriptors = raise_descriptor_limit(_wanted_descriptors(config))
    account = None
    if config.user is not None:
        with _blaming("user"):
            account = look_up_user(config.user)
    limits = limits_of(config)
    networks_of("proxy_trust", config.proxy_trust)  # a fault shows before anything is bound
    networks_of("probe_from", config.probe_from)
    with _blaming("dnsbl", "rdns"):
        vetting_of(config)
    with _blaming("listen", "port"):
        listeners = open_listeners(
            config.listen, config.port, backlog=config.backlog, socket_mode=config.socket_mode
        )
    left_over.callback(_close_all, listeners)
    with _blaming("metrics"):
        metrics = open_metrics(config)
    left_over.callback(_close_all, metrics)
    pid_file = None
    if config.pid_file is not None:
        with _blaming("pid_file"):
            pid_file = PidFile.acquire(config.pid_file)
        left_over.callback(pid_file.remove)
    if account is not None:
        left_over.callback(_hire_janitor(account, [*listeners, *metrics], pid_file).dismiss)
    with _blaming("handler"):
        chain = load_handlers(config.handler)
    with _blaming("tls_cert", "tls_key"):
        tally = Tally(timing=bool(metrics))
        server = Server(chain, config=config, limits=limits, listeners=listeners, tally=tally)
    if account is not None:
        with _blaming("user"):
            drop_privileges(account)
    with _blaming("handler"):
        chain.prepare()
    return _Prepared(server, pid_file, list(_warnings(config, chain, descriptors)), metrics)


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


def _hire_janitor(
    account: Account, listeners: Sequence[Listener], pid_file: PidFile | None
) -> Janitor:
    """Keep the right to remove what the user will not be able to."""
    for listener in listeners:
        if listener.path is not None:
            os.chown(listener.path, account.uid, account.gid)
    if pid_file is None:
        return Janitor.hire(listeners)
    return Janitor.hire([*listeners, pid_file], keep=pid_file.descriptor)


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
        yield f"the handler {text!r} never sees a message: a sink comes before it"
    if config.detach and threading.active_count() > 1:
        yield "a handler began threads when it was loaded; they do not survive --detach"
