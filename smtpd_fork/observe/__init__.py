"""What lets an administrator see into a daemon that runs, and have a say."""

from smtpd_fork.observe.notifications import Notifications
from smtpd_fork.observe.service import Service

__all__ = ["Notifications", "Service"]
