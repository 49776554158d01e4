"""Puts our session into aiosmtpd's place before anything of a Python process runs.

On PYTHONPATH of another project's tests, and so of the processes that they start. Without
SUITES_WITNESS, which is a directory, nothing is changed. There a file stands for each process in
which a session of ours was made: else a run would say nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

if "SUITES_WITNESS" in os.environ:
    import aiosmtpd.smtp

    import smtpd_fork.smtp

    class Seen(smtpd_fork.smtp.SMTP):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)  # type: ignore[arg-type]  # handed on as they came
            Path(os.environ["SUITES_WITNESS"], str(os.getpid())).touch()

    Seen.__name__ = Seen.__qualname__ = "SMTP"
    aiosmtpd.smtp.SMTP = Seen  # type: ignore[misc]  # that is what it is for
