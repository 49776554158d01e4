"""Daemon manners: detaching, the pid-file, privileges. No SMTP here, and no asyncio."""

from smtpd_fork.daemon.descriptors import fill_standard_descriptors, raise_descriptor_limit
from smtpd_fork.daemon.detach import Word, detach
from smtpd_fork.daemon.janitor import Janitor
from smtpd_fork.daemon.pidfile import PidFile
from smtpd_fork.daemon.privileges import Account, drop_privileges, look_up_user

__all__ = [
    "Account",
    "Janitor",
    "PidFile",
    "Word",
    "detach",
    "drop_privileges",
    "fill_standard_descriptors",
    "look_up_user",
    "raise_descriptor_limit",
]
