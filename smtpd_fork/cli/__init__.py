"""The command ``smtpd-fork``: reads options, environment and file, and starts the daemon.

It also contains the commands for administrators of a running daemon.
"""

from smtpd_fork.cli.dispatch import main

__all__ = ["main"]
