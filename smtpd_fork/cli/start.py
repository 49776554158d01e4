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

from smtpd_fork.cli.blame import blaming
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
from smtpd_fork.errors import ExitStatus, OperatingSystemError, SmtpdForkError
from smtpd_fork.gate import limits_of, networks_of
from smtpd_fork.handlers import load_handlers
from smtpd_fork.listeners import open_listeners, vetting_of
from smtpd_fork.observe.control import open_control
from smtpd_fork.observe.logs import set_up_logging
from smtpd_fork.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from smtpd_fork.cli.given import Given
    from smtpd_fork.config import DaemonConfig
    from smtpd_fork.handlers import Chain
    from smtpd_fork.listeners import Listener
    from smtpd_fork.observe.logs import Courier

__all__ = ["start"]

log = logging.getLogger("smtpd_fork.daemon")

MUTE = "smtpd-fork: warning: there is no syslog here, nothing is logged; name a place with --log-to"
"""Said where the log would be: on the terminal of who starts a daemon that detaches."""


class _Prepared(NamedTuple):
    """What is there when nothing can fail any more but the last steps."""

    server: Server
    pid_file: PidFile | None
    control: Listener | None
    warnings: list[str]
    """Not told before the start is sure: of a start that fails, the fault is the one line."""
    courier: Courier | None
    """Who writes the log; None if nobody does."""


def start(given: Given) -> ExitStatus:
    """Be the daemon that *given* describes, until it is told to stop.

    :returns: how it ended
    :raises SmtpdForkError: it cannot be; with ``settings`` that are to blame, and nothing done
    """
    config = given.build()
    with ExitStack() as left_over:
        prepared = _set_up(config, left_over)
        if strays := given.strays():
            prepared.warnings.append(f"no option has the name of {', '.join(strays)}")
        word = detach() if config.detach else None
        try:
            return _serve(given, config, prepared, word)
        except SmtpdForkError as error:
            if word is None:
                raise
            reason = given.explain(error)
            log.error("%s", reason)  # noqa: TRY400 - one line, as on a terminal
            # Whoever hears of it finds nothing left: cleaned up first, told afterwards.
            left_over.close()
            word.failed(given.status(error), f"smtpd-fork: {reason}")
            os._exit(given.status(error))


def _serve(
    given: Given, config: DaemonConfig, prepared: _Prepared, word: Word | None
) -> ExitStatus:
    if prepared.pid_file is not None:
        with blaming("pid_file"):
            prepared.pid_file.write(os.getpid())
    if prepared.courier is not None:
        prepared.courier.begin()  # after the last fork, which no thread survives
    for warning in prepared.warnings:
        log.warning("%s", warning)
    ready = None
    if word is not None:
        ready = partial(word.serving, MUTE if prepared.courier is None else "")
    return serve(prepared.server, given, config, ready=ready, control=prepared.control)


def _set_up(config: DaemonConfig, left_over: ExitStack) -> _Prepared:
    """Do all that comes before the detaching."""
    _check_folder()
    with blaming("log_to"):
        courier = set_up_logging(config)
    if courier is not None:
        left_over.callback(courier.end)  # first in, last out: what ends is told until then
    descriptors = raise_descriptor_limit(_wanted_descriptors(config))
    account = None
    if config.user is not None:
        with blaming("user"):
            account = look_up_user(config.user)
    limits = limits_of(config)
    networks_of("proxy_trust", config.proxy_trust)  # a fault shows before anything is bound
    with blaming("dnsbl", "rdns"):
        vetting_of(config)
    with blaming("listen", "port"):
        listeners = open_listeners(
            config.listen, config.port, backlog=config.backlog, socket_mode=config.socket_mode
        )
    left_over.callback(_close_all, listeners)
    control = None
    if config.control is not None:
        with blaming("control"):
            control = open_control(config.control)
        left_over.callback(control.close)
    pid_file = None
    if config.pid_file is not None:
        with blaming("pid_file"):
            pid_file = PidFile.acquire(config.pid_file)
        left_over.callback(pid_file.remove)
    if account is not None:
        on_paths = listeners if control is None else [*listeners, control]
        left_over.callback(_hire_janitor(account, on_paths, pid_file).dismiss)
    with blaming("handler"):
        chain = load_handlers(config.handler)
    with blaming("tls_cert", "tls_key", "tls_client_ca"):
        server = Server(chain, config=config, limits=limits, listeners=listeners)
    if account is not None:
        with blaming("user"):
            drop_privileges(account)
    with blaming("handler"):
        chain.prepare()
    warnings = list(_warnings(config, chain, descriptors))
    return _Prepared(server, pid_file, control, warnings, courier)


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
            os.chown(listener.path, account.uid, account.gid, follow_symlinks=False)
    if pid_file is None:
        return Janitor.hire(listeners)
    return Janitor.hire([*listeners, pid_file], keep=pid_file.descriptor)


def _wanted_descriptors(config: DaemonConfig) -> int:
    return config.limit_connections + RESERVED_DESCRIPTORS


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
