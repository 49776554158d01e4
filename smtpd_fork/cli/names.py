"""Names that the commands share: the program's, its variables', and the options of help."""

from __future__ import annotations

__all__ = [
    "CLIENT_VARIABLE", "COMPLETION_VARIABLE", "CONFIG_VARIABLE", "CONTEXT_SETTINGS",
    "CONTROL_VARIABLE", "ENVIRONMENT_PREFIX", "PROGRAM",
]  # fmt: skip

PROGRAM = "smtpd-fork"

ENVIRONMENT_PREFIX = "SMTPD_FORK_"

CONFIG_VARIABLE = ENVIRONMENT_PREFIX + "CONFIG"

CONTROL_VARIABLE = ENVIRONMENT_PREFIX + "CONTROL"
"""The daemon's own variable for its control socket, which the commands read as well."""

CLIENT_VARIABLE = ENVIRONMENT_PREFIX + "CONTROL_SOCKET"
"""The control socket for the commands alone."""

COMPLETION_VARIABLE = "_SMTPD_FORK_COMPLETE"
"""By it a shell asks for its completion script, and for the words that fit (click's own)."""

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 80}
"""Of every command's :class:`click.Context`."""
