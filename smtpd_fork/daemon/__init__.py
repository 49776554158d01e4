"""Daemon manners: detaching, the pid-file, privileges. No SMTP here, and no asyncio."""

from smtpd_fork.daemon.activation import PassedSocket, passed_sockets
from smtpd_fork.daemon.descriptors import fill_standard_descriptors, raise_descriptor_limit
from smtpd_fork.daemon.detach import Word, detach
from smtpd_fork.daemon.estate import Estate, Heir, LeftListener, LeftPidFile
from smtpd_fork.daemon.init import become_init_if_first
from smtpd_fork.daemon.janitor import Janitor
from smtpd_fork.daemon.notify import Notifier
from smtpd_fork.daemon.origin import Origin
from smtpd_fork.daemon.pidfile import PidFile
from smtpd_fork.daemon.privileges import Account, drop_privileges, look_up_user

__all__ = [
    "Account",
    "Estate",
    "Heir",
    "Janitor",
    "LeftListener",
    "LeftPidFile",
    "Notifier",
    "Origin",
    "PassedSocket",
    "PidFile",
    "Word",
    "become_init_if_first",
    "detach",
    "drop_privileges",
    "fill_standard_descriptors",
    "look_up_user",
    "passed_sockets",
    "raise_descriptor_limit",
]
