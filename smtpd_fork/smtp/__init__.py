"""The session on the wire: a dialogue with a socket, a loop, a clock, and handlers to ask."""

from smtpd_fork.smtp.connection import Connection
from smtpd_fork.smtp.smtp import SMTP
from smtpd_fork.smtp.sweep import Sweep

__all__ = ["SMTP", "Connection", "Sweep"]
