"""The session: aiosmtpd's SMTP class, with a ticket that it cannot lose."""

from smtpd_fork.smtp.session import Session
from smtpd_fork.smtp.smtp import SMTP

__all__ = ["SMTP", "Session"]
