"""The tasks of a daemon: detaching, pid-file, privileges, service manager, upgrade.

This package uses neither SMTP nor asyncio. python-daemon also detaches and changes the user, but
its parent process exits before the daemon serves, and it does not check that the process cannot
become root again.
"""

from smtpd_fork.daemon.cleanup_process import CleanupProcess
from smtpd_fork.daemon.descriptors import fill_standard_descriptors, raise_descriptor_limit
from smtpd_fork.daemon.detach import StartupReport, detach
from smtpd_fork.daemon.handover import Handover, HandoverListener, Invocation, Successor, Supervised
from smtpd_fork.daemon.init import become_init_if_pid_1
from smtpd_fork.daemon.pidfile import PidFile
from smtpd_fork.daemon.privileges import (
    Account,
    drop_privileges,
    look_up_user,
    run_as,
    unreadable_library,
)
from smtpd_fork.daemon.process_sockets import listening_sockets
from smtpd_fork.daemon.sd_notify import Notifier
from smtpd_fork.daemon.socket_activation import PassedSocket, passed_sockets

__all__ = [
    "Account",
    "CleanupProcess",
    "Handover",
    "HandoverListener",
    "Invocation",
    "Notifier",
    "PassedSocket",
    "PidFile",
    "StartupReport",
    "Successor",
    "Supervised",
    "become_init_if_pid_1",
    "detach",
    "drop_privileges",
    "fill_standard_descriptors",
    "listening_sockets",
    "look_up_user",
    "passed_sockets",
    "raise_descriptor_limit",
    "run_as",
    "unreadable_library",
]  # fmt: skip
