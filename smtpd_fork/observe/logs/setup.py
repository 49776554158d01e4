"""Setup of the log by ``--log-to``, ``--log-format`` and ``--log-level``."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from smtpd_fork.errors import CannotCreateError, ConfigError
from smtpd_fork.observe.logs.formats import (
    JsonFormat,
    TextFormat,
    for_journald,
    for_stream,
    for_syslog,
)
from smtpd_fork.observe.logs.log_queue import LogQueue
from smtpd_fork.observe.logs.log_targets import (
    FILE_FLAGS,
    FileTarget,
    JournalTarget,
    StreamTarget,
    SyslogTarget,
)
from smtpd_fork.observe.service import Service
from smtpd_fork.safe_open import safe_open

if TYPE_CHECKING:
    from smtpd_fork.config import DaemonConfig

__all__ = ["JOURNALD", "SYSLOG", "LogReload", "check_log", "set_up_logging"]

SYSLOG = "/dev/log"
"""The socket of syslog(3)."""

JOURNALD = "/run/systemd/journal/socket"
"""The socket of systemd's Native Journal Protocol."""

_DESCRIPTORS = {"stdout": 1, "stderr": 2}

_LINE = "%(asctime)s %(levelname)s %(message)s"

_LINE_WITH_PID = "%(asctime)s smtpd-fork[%(process)d]: %(levelname)s %(message)s"
"""The format with --processes, with program and process id as in syslog."""


def set_up_logging(config: DaemonConfig, owner: tuple[int, int] | None = None) -> LogQueue | None:
    """Set up the log as in *config*; return the queue, or None if there is no target.

    A file is opened now, before privileges are dropped, and before a detached daemon changes its
    directory.

    :param owner: uid and gid for a new log file
    :raises CannotCreateError: the file cannot be written
    :raises OperatingSystemError: syslog or journald is not available
    :raises ConfigError: a detached daemon has no terminal to log to
    """
    log_queue = log_queue_of(config, owner)
    handler = log_queue or logging.NullHandler()
    logging.basicConfig(handlers=[handler], force=True)
    set_level(config.log_level)
    logging.captureWarnings(capture=True)
    logging.raiseExceptions = False  # an error of the log must not write to standard error
    return log_queue


def set_level(name: str) -> None:
    """Set the level to *name*, a value of ``--log-level``."""
    logging.getLogger().setLevel(name.upper())
    # aiosmtpd logs every command at INFO, including credentials, and unknown commands at WARNING,
    # of any length and as often as the client sends them.
    logging.getLogger("mail.log").setLevel(logging.ERROR)


def check_log(config: DaemonConfig) -> None:
    """Check that the log target of *config* can be opened, without creating anything.

    :raises SmtpdForkError: it cannot be opened
    """
    where = config.log_to
    if where is None or where in {*_DESCRIPTORS, "syslog", "journald"}:
        log_queue = log_queue_of(config)
        if log_queue is not None:
            log_queue.end()
        return
    path = Path(where).absolute()
    try:
        os.close(safe_open(path, FILE_FLAGS))
    except FileNotFoundError:
        if not os.access(path.resolve().parent, os.W_OK | os.X_OK):
            reason = os.strerror(errno.EACCES if path.parent.is_dir() else errno.ENOENT)
            raise CannotCreateError(f"cannot log to {path}: {reason}") from None
    except OSError as error:
        raise CannotCreateError(f"cannot log to {path}: {error.strerror}") from None


def log_queue_of(config: DaemonConfig, owner: tuple[int, int] | None = None) -> LogQueue | None:
    """Return the queue of the log that *config* describes; None if there is no target."""
    where = config.log_to or default_target(detach=config.detach)
    line = _LINE if config.processes == 1 else _LINE_WITH_PID
    json = JsonFormat() if config.log_format == "json" else None
    if where in _DESCRIPTORS:
        if config.detach:
            raise ConfigError(f"a detached daemon has no {where} to log to")
        target = StreamTarget(_DESCRIPTORS[where])
    elif where == "journald":
        return LogQueue(JournalTarget(JOURNALD), for_journald(json))
    elif where == "syslog":
        if config.log_to is None and not Path(SYSLOG).is_socket():
            return None  # a detached daemon in a container: it serves without a log
        return LogQueue(SyslogTarget(SYSLOG), for_syslog(json))
    else:
        target = FileTarget(Path(where).absolute(), owner)
    return LogQueue(target, for_stream(json or TextFormat(line)))


def default_target(*, detach: bool) -> str:
    """Return the default value of ``log_to`` in the current environment.

    If systemd has connected standard error to the journal, JOURNAL_STREAM has its device and inode
    (systemd.exec(5)). Then entries are sent to journald directly, to keep severity and fields.
    """
    if detach:
        return "syslog"
    status = os.fstat(_DESCRIPTORS["stderr"])
    stream = os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return "journald" if stream and Path(JOURNALD).is_socket() else "stderr"


class LogReload(Service):
    """Opens the log again and sets its level on a reload of the daemon."""

    async def reloading(self) -> None:
        """Open the file again, as logrotate(8) renames it and sends SIGHUP."""
        for handler in logging.getLogger().handlers:
            if isinstance(handler, LogQueue):
                handler.reopen()

    async def reloaded(self, config: DaemonConfig) -> None:
        """Set the level for new sessions; existing sessions keep theirs."""
        set_level(config.log_level)
