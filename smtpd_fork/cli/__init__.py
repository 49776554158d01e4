"""The command: flags and environment into settings, settings into a daemon."""

from smtpd_fork.cli.dispatch import main

__all__ = ["main"]
