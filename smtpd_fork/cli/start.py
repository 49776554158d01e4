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
from typing import TYPE_CHECKING

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
from smtpd_fork.errors import SmtpdForkError
from smtpd_fork.handlers import load_handlers
from smtpd_fork.listeners import open_listeners
from smtpd_fork.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from smtpd_fork.config import DaemonConfig
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


def start(config: DaemonConfig, *, strays: Sequence[str] = ()) -> None:
    """Be the daemon that *config* describes, until it is told to stop.

    :param strays: environment variables that name no option, to be warned of
    :raises SmtpdForkError: it cannot be; with ``settings`` that are to blame, and nothing done
    """
    with ExitStack() as left_over:
        server, pid_file = _set_up(config, left_over)
        if strays:
            log.warning("no option has the name of %s", ", ".join(strays))
        word: Word | None = None
        if config.detach:
            _warn_of_threads()
            word = detach()
        try:
            if pid_file is not None:
                with _blaming("pid_file"):
                    pid_file.write(os.getpid())
            serve(server, loop=config.loop, ready=word.serving if word is not None else None)
        except SmtpdForkError as error:
            if word is None:
                raise
            log.error("%s", error)  # noqa: TRY400 - one line, as on a terminal
            word.failed(error.exit_status, f"smtpd-fork: {error}")
            left_over.close()
            os._exit(error.exit_status)


def _set_up(config: DaemonConfig, left_over: ExitStack) -> tuple[Server, PidFile | None]:
    """Do all that comes before the detaching."""
    with _blaming("log_to"):
        set_up_logging(config)
    account = None
    if config.user is not None:
        with _blaming("user"):
            account = look_up_user(config.user)
    wanted = config.limit_connections + RESERVED_DESCRIPTORS
    descriptors = raise_descriptor_limit(wanted)
    with _blaming("listen", "port"):
        listeners = open_listeners(
            config.listen,
            config.port,
            backlog=config.backlog,
            socket_mode=config.socket_mode,
        )
    left_over.callback(_close_all, listeners)
    pid_file = None
    if config.pid_file is not None:
        with _blaming("pid_file"):
            pid_file = PidFile.acquire(config.pid_file)
        left_over.callback(pid_file.remove)
    if account is not None:
        left_over.callback(_hire_janitor(account, listeners, pid_file).dismiss)
    with _blaming("handler"):
        chain = load_handlers(config.handler)
    with _blaming("tls_cert", "tls_key"):
        server = Server(chain, config=config, listeners=listeners)
    if account is not None:
        with _blaming("user"):
            drop_privileges(account)
    with _blaming("handler"):
        chain.prepare()
    # Not before nothing can fail any more: an error is to be the one line that is seen.
    if os.geteuid() == 0:
        log.warning("running as root; name a user with --user")
    if descriptors < wanted:
        log.warning(
            "%d sessions need %d open files, and the system allows %d (RLIMIT_NOFILE)",
            config.limit_connections,
            wanted,
            descriptors,
        )
    return server, pid_file


def _close_all(listeners: Sequence[Listener]) -> None:
    for listener in listeners:
        listener.close()


def _hire_janitor(
    account: Account, listeners: Sequence[Listener], pid_file: PidFile | None
) -> Janitor:
    """Keep the right to remove what the user will not be able to."""
    paths = {}
    for listener in listeners:
        if listener.path is not None and listener.path_inode is not None:
            paths[listener.path] = listener.path_inode
            os.chown(listener.path, account.uid, account.gid)
    if pid_file is not None:
        status = os.fstat(pid_file.descriptor)
        paths[pid_file.path] = (status.st_dev, status.st_ino)
    return Janitor.hire(paths, keep=pid_file.descriptor if pid_file is not None else None)


def _warn_of_threads() -> None:
    if threading.active_count() > 1:
        log.warning("a handler began threads when it was loaded; they do not survive --detach")
