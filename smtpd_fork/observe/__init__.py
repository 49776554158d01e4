"""Observation and control of a running daemon: logs, metrics, status page, control socket."""

from smtpd_fork.observe.notifications import Notifications
from smtpd_fork.observe.service import Service

__all__ = ["Notifications", "Service"]
