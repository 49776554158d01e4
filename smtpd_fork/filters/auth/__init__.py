"""auth: clients authenticate themselves, by a file of users, by Dovecot, or by a program's own."""

from smtpd_fork.filters.auth.handler import Auth

__all__ = ["Auth"]
