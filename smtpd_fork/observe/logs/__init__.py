"""Logs: what a line holds, how it is written, and who takes it to its place."""

from smtpd_fork.observe.logs.fields import FIELDS
from smtpd_fork.observe.logs.log_queue import LogQueue
from smtpd_fork.observe.logs.setup import LogReload, check_log, set_up_logging

__all__ = ["FIELDS", "LogQueue", "LogReload", "check_log", "set_up_logging"]
