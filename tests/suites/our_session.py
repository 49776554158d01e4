"""Puts our session into aiosmtpd's place; imported as Python starts (session_environment()).

For each process in which a session of ours is made there is a file in the environment's directory
``witness``: without one a run would say nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import aiosmtpd.smtp

import smtpd_fork.smtp


class SMTP(smtpd_fork.smtp.SMTP):
    """Ours, seen to be made."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]  # handed on as they came
        Path(sys.prefix, "witness", str(os.getpid())).touch()


aiosmtpd.smtp.SMTP = SMTP  # type: ignore[misc]  # that is what it is for
