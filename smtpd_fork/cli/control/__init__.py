"""The commands that speak to a daemon that runs, over its control socket. See docs/control.md."""

from smtpd_fork.cli.control.commands import CONTROL_COMMANDS

__all__ = ["CONTROL_COMMANDS"]
