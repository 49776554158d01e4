"""What makes a process a daemon: detaching, pid-file, privileges, service manager, upgrade.

This package knows nothing of SMTP or asyncio. python-daemon detaches and changes users as well, but
its parent process exits before the daemon serves, and it does not check that root is gone.
"""

from smtpd_fork.daemon.descriptors import fill_standard_descriptors, raise_descriptor_limit
from smtpd_fork.daemon.detach import Word, detach
from smtpd_fork.daemon.handover import (
    HandedListener,
    HandedPidFile,
    Handover,
    Invocation,
    Successor,
)
from smtpd_fork.daemon.init import become_init_if_first
from smtpd_fork.daemon.janitor import Janitor
from smtpd_fork.daemon.pidfile import PidFile
from smtpd_fork.daemon.privileges import Account, drop_privileges, look_up_user
from smtpd_fork.daemon.sd_notify import Notifier
from smtpd_fork.daemon.socket_activation import PassedSocket, passed_sockets

__all__ = [
    "Account",
    "HandedListener",
    "HandedPidFile",
    "Handover",
    "Invocation",
    "Janitor",
    "Notifier",
    "PassedSocket",
    "PidFile",
    "Successor",
    "Word",
    "become_init_if_first",
    "detach",
    "drop_privileges",
    "fill_standard_descriptors",
    "look_up_user",
    "passed_sockets",
    "raise_descriptor_limit",
]
