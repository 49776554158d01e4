"""Logging of the daemon: text lines, to where the administrator wants them."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from smtpd_fork.errors import CannotCreateError, ConfigError, OperatingSystemError

if TYPE_CHECKING:
    from smtpd_fork.config import DaemonConfig

__all__ = ["check_log", "set_up_logging"]

SYSLOG = "/dev/log"

_LINE = "%(asctime)s %(levelname)s %(message)s"
_SYSLOG_LINE = "smtpd-fork[%(process)d]: %(levelname)s %(message)s"


def set_up_logging(config: DaemonConfig) -> None:
    """Have everything logged to where *config* says.

    A file is opened here and now: before privileges are dropped, and before / is the folder.

    :raises CannotCreateError: the file cannot be written
    :raises OperatingSystemError: there is no syslog
    :raises ConfigError: a detached daemon was told to log to a terminal
    """
    handler = _handler(config)
    level = config.log_level.upper()
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    logging.raiseExceptions = False  # a line that cannot be written is lost, and nothing else
    # aiosmtpd logs every command at INFO, and at WARNING whatever nonsense a client says, as often
    # and as long as the client likes.
    logging.getLogger("mail.log").setLevel(level if level == "DEBUG" else logging.ERROR)


def check_log(config: DaemonConfig) -> None:
    """See whether it can be logged to where *config* says; nothing is made.

    :raises SmtpdForkError: it cannot
    """
    where = config.log_to
    if where is None or where in {"stderr", "stdout", "syslog"}:
        _handler(config).close()
        return
    path = Path(where).absolute()
    there = path if path.exists() else path.parent
    if path.is_dir() or not os.access(there, os.W_OK):
        raise CannotCreateError(f"cannot log to {path}: it cannot be written")


def _handler(config: DaemonConfig) -> logging.Handler:
    where = config.log_to or ("syslog" if config.detach else "stderr")
    if where in {"stderr", "stdout"}:
        if config.detach:
            raise ConfigError(f"a detached daemon has no {where} to log to")
        handler: logging.Handler = logging.StreamHandler(getattr(sys, where))
    elif where == "syslog":
        return _syslog(explicit=config.log_to is not None)
    else:
        handler = _file(where)
    handler.setFormatter(logging.Formatter(_LINE))
    return handler


def _syslog(*, explicit: bool) -> logging.Handler:
    if not Path(SYSLOG).is_socket():
        if not explicit:  # where there is none, a daemon that is mute still serves
            return logging.NullHandler()
        raise OperatingSystemError(f"cannot log to syslog: there is no {SYSLOG}")
    handler = logging.handlers.SysLogHandler(
        SYSLOG, facility=logging.handlers.SysLogHandler.LOG_MAIL
    )
    handler.setFormatter(logging.Formatter(_SYSLOG_LINE))
    return handler


def _file(where: str) -> logging.Handler:
    path = Path(where).absolute()
    try:
        return logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise CannotCreateError(f"cannot log to {path}: {error.strerror}") from None
