"""Dispatch: runs the command that the arguments name, and reports its errors.

Every error is one line on standard error, which names the value and its origin, and an exit status
of sysexits.h. The commands for administrators are run without importing the modules of the daemon,
which take most of the time of a start.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from smtpd_fork.cli.control import CONTROL_COMMANDS
from smtpd_fork.cli.names import COMPLETION_VARIABLE, PROGRAM
from smtpd_fork.daemon.descriptors import fill_standard_descriptors
from smtpd_fork.errors import ExitStatus, SmtpdForkError

if TYPE_CHECKING:
    from smtpd_fork.cli.startup_resources import StartupResources

__all__ = ["fail", "main", "run"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; return its exit status."""
    fill_standard_descriptors()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in CONTROL_COMMANDS and COMPLETION_VARIABLE not in os.environ:
        return run(CONTROL_COMMANDS[words[0]], f"{PROGRAM} {words[0]}", words[1:])
    from smtpd_fork.cli.command import run_daemon  # noqa: PLC0415 - see above

    return run_daemon(words)


def run(
    chosen: click.Command,
    name: str,
    words: Sequence[str],
    resources: StartupResources | None = None,
) -> int:
    """Run a command with its arguments; return its exit status."""
    try:
        status = chosen.main(args=words, prog_name=name, standalone_mode=False, obj=resources)
    except SmtpdForkError as error:
        return fail(resources, str(error), error.exit_status)
    except click.ClickException as error:
        return fail(resources, error.format_message(), ExitStatus.USAGE)
    except click.Abort:  # raised by click for KeyboardInterrupt
        return 130
    return int(status or ExitStatus.OK)


def fail(resources: StartupResources | None, text: str, status: int) -> int:
    """Report an error on standard error, and to the old process of an upgrade if there is one."""
    if resources is not None and resources.successor is not None:
        resources.successor.failed(text)
        if resources.supervised is not None:
            return int(status)  # the supervisor reports the error
    sys.stderr.write(f"{PROGRAM}: {' '.join(text.split())}\n")
    return int(status)
