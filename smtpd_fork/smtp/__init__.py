"""The sessions on connections: a dialogue with its socket, event loop, deadlines and handlers."""

from smtpd_fork.smtp.connection import Connection
from smtpd_fork.smtp.smtp import SMTP
from smtpd_fork.smtp.sweep import Sweep

__all__ = ["SMTP", "Connection", "Sweep"]
