"""The commands that use the control socket of a running daemon. See docs/control.md."""

from smtpd_fork.cli.control.commands import CONTROL_COMMANDS

__all__ = ["CONTROL_COMMANDS"]
