"""What lets an administrator see into a daemon that runs, and have a say."""

from smtpd_fork.observe.companion import Companion
from smtpd_fork.observe.notifications import Notifications

__all__ = ["Companion", "Notifications"]
