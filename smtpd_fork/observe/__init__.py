"""Observation and control of a daemon that runs: logs, metrics, status, control socket."""

from smtpd_fork.observe.notifications import Notifications
from smtpd_fork.observe.service import Service

__all__ = ["Notifications", "Service"]
