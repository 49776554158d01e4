"""auth: authenticate clients by a file of users, by Dovecot, or by a Python function."""

from smtpd_fork.filters.auth.handler import Auth

__all__ = ["Auth"]
