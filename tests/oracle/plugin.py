"""A plugin of pytest that replaces aiosmtpd's session with ours before aiosmtpd's tests import it.

Loaded with ``-p plugin`` in a separate process, which test_oracle.py starts.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import aiosmtpd.smtp

import smtpd_fork.smtp

if TYPE_CHECKING:
    import pytest

assert not {"aiosmtpd.controller", "aiosmtpd.lmtp"} & set(sys.modules), (
    "they have imported the stock class"
)


class Session(smtpd_fork.smtp.SMTP):
    """Has the limit of aiosmtpd's class, which its users may change; smtpd_fork's has none."""

    line_length_limit = 1001


aiosmtpd.smtp.SMTP = Session  # type: ignore[misc]  # that is what it is for

from aiosmtpd.controller import InetMixin  # noqa: E402 - the import has to follow the replacement

PORT = int(os.environ["ORACLE_PORT"])
"""Replaces their port 8025, so that two runs on one machine do not conflict."""

InetMixin.__init__.__defaults__ = (None, PORT, None)

_reports: dict[str, str] = {}


def _resource_filename(package: str, name: str) -> str:
    base = Path(aiosmtpd.__path__[0]).parent
    return str(base.joinpath(*package.split("."), name))


# Their conftest.py imports one function of pkg_resources, which new setuptools do not have.
_pkg_resources = ModuleType("pkg_resources")
_pkg_resources.resource_filename = _resource_filename  # type: ignore[attr-defined]  # as above
sys.modules["pkg_resources"] = _pkg_resources


def pytest_collection_finish() -> None:
    """Let their fixtures use our port."""
    their_conftest = sys.modules["aiosmtpd.tests.conftest"]
    their_conftest.HostPort.__new__.__defaults__ = ("localhost", PORT)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Record the error of a test; an empty text if it passed in all its phases."""
    wrong = f"{report.when}: {report.longreprtext}\n" if report.failed else ""
    _reports[report.nodeid] = _reports.get(report.nodeid, "") + wrong


def pytest_sessionfinish() -> None:
    """Write all results to the file."""
    Path(os.environ["ORACLE_REPORT"]).write_text(json.dumps(_reports))
