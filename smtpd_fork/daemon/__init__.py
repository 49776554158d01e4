"""What makes a process a daemon: detaching, pid-file, privileges, service manager, upgrade.

This package knows nothing of SMTP or asyncio. python-daemon detaches and changes users as well, but
its parent process exits before the daemon serves, and it does not check that root is gone.
"""

from smtpd_fork.daemon.cleanup_process import CleanupProcess
from smtpd_fork.daemon.descriptors import fill_standard_descriptors, raise_descriptor_limit
from smtpd_fork.daemon.detach import Word, detach
from smtpd_fork.daemon.handover import HandedListener, Handover, Invocation, Successor, Supervised
from smtpd_fork.daemon.held_sockets import held_sockets
from smtpd_fork.daemon.init import become_init_if_first
from smtpd_fork.daemon.pidfile import PidFile
from smtpd_fork.daemon.privileges import (
    Account,
    ask_as,
    drop_privileges,
    look_up_user,
    unreadable_library,
)
from smtpd_fork.daemon.sd_notify import Notifier
from smtpd_fork.daemon.socket_activation import PassedSocket, passed_sockets

__all__ = [
    "Account",
    "CleanupProcess",
    "HandedListener",
    "Handover",
    "Invocation",
    "Notifier",
    "PassedSocket",
    "PidFile",
    "Successor",
    "Supervised",
    "Word",
    "ask_as",
    "become_init_if_first",
    "detach",
    "drop_privileges",
    "fill_standard_descriptors",
    "held_sockets",
    "look_up_user",
    "passed_sockets",
    "raise_descriptor_limit",
    "unreadable_library",
]  # fmt: skip
