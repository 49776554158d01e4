"""Logs: what a line holds, how it is written, and who takes it to its place."""

from smtpd_fork.observe.logs.courier import Courier
from smtpd_fork.observe.logs.fields import FIELDS
from smtpd_fork.observe.logs.keeper import LogKeeper
from smtpd_fork.observe.logs.setup import check_log, set_up_logging

__all__ = ["FIELDS", "Courier", "LogKeeper", "check_log", "set_up_logging"]
