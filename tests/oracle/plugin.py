"""Pytest's plugin: puts our session into aiosmtpd's place, before aiosmtpd's tests import it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import aiosmtpd.smtp
import pytest

import smtpd_fork.smtp

aiosmtpd.smtp.SMTP = smtpd_fork.smtp.SMTP  # type: ignore[misc]  # that is what it is for

_reports: dict[str, list[str]] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note a test; what was wrong with it, if it failed in any of its phases."""
    wrong = _reports.setdefault(report.nodeid.lstrip(":"), [])
    if report.failed:
        wrong.append(f"{report.when}: {report.longreprtext}")


def pytest_sessionfinish() -> None:
    """Hand all over to who asked."""
    Path(os.environ["ORACLE_REPORT"]).write_text(json.dumps(_reports))
