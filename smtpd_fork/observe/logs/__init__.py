"""Logs: fields, formats, the queue and the targets of log entries."""

from smtpd_fork.observe.logs.fields import FIELDS
from smtpd_fork.observe.logs.log_queue import LogQueue
from smtpd_fork.observe.logs.setup import LogReload, check_log, set_up_logging

__all__ = ["FIELDS", "LogQueue", "LogReload", "check_log", "set_up_logging"]
