"""Replaces aiosmtpd's session with ours; imported when Python starts (session_environment()).

Each process that creates such a session writes a file to the environment's directory ``witness``,
so that a run without our session is detected.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import aiosmtpd.smtp

import smtpd_fork.smtp


class SMTP(smtpd_fork.smtp.SMTP):
    """smtpd_fork's session, which records that it was created."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]  # handed on as they came
        Path(sys.prefix, "witness", str(os.getpid())).touch()


aiosmtpd.smtp.SMTP = SMTP  # type: ignore[misc]  # that is what it is for
