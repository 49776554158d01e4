"""Names that the commands share: of the program, of environment variables, of the help options."""

from __future__ import annotations

__all__ = [
    "CLIENT_VARIABLE", "COMPLETION_VARIABLE", "CONFIG_VARIABLE", "CONTEXT_SETTINGS",
    "CONTROL_VARIABLE", "ENVIRONMENT_PREFIX", "PROGRAM",
]  # fmt: skip

PROGRAM = "smtpd-fork"

ENVIRONMENT_PREFIX = "SMTPD_FORK_"

CONFIG_VARIABLE = ENVIRONMENT_PREFIX + "CONFIG"

CONTROL_VARIABLE = ENVIRONMENT_PREFIX + "CONTROL"
"""The environment variable of the daemon's control socket, which the commands read as well."""

CLIENT_VARIABLE = ENVIRONMENT_PREFIX + "CONTROL_SOCKET"
"""The environment variable of the control socket for the commands only."""

COMPLETION_VARIABLE = "_SMTPD_FORK_COMPLETE"
"""The variable with which a shell requests its completion script and completions (click's)."""

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 80}
"""Settings of the :class:`click.Context` of every command."""
