"""qpsmtpd-forkserver and smtpd-fork: the differences are those of the table of docs/qpsmtpd.md."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

from support.differences import INTENDED, observed
from support.page import read

DOCS = "docs/qpsmtpd.md"


def test_every_intended_difference_is_in_the_table_with_its_reason_and_no_other() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in read(DOCS).splitlines()
        if re.match(r"\| `[a-z0-9-]+`: ", line)
    ]
    assert all(len(row) == 4 and all(row) for row in rows)
    assert sorted(row[0].split("`")[1] for row in rows) == sorted(INTENDED)


def test_every_intended_difference_is_observed_by_a_test() -> None:
    for path in Path(__file__).parent.glob("test_*.py"):
        import_module(f"qpsmtpd.{path.stem}")
    assert observed == INTENDED.keys()
