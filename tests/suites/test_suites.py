"""Other projects' tests: their handlers, sessions and clients also work with our session.

Each project's tests run with aiosmtpd's session and with ours. A test that passes with one and
fails with the other is a difference: it is listed in projects.py with its reason, or is a bug. A
listed test that passes has to be removed from the list. ``make suites`` runs this.
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from suites.environment import ROOT, Environment, environment, with_our_session
from suites.projects import PROJECTS, Project
from support.daemon import clean_environment, end

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from _pytest.terminal import TerminalReporter

PAGE = ROOT / "docs/migrating-from-aiosmtpd.md"

PATIENCE = 240
"""Timeout for the tests of a project, seconds."""

pytestmark = [pytest.mark.suites, pytest.mark.timeout(3 * PATIENCE)]


@pytest.fixture(scope="session")
def installed() -> Environment:
    return environment()


class Table(list[str]):
    """Lines that pytest shows at the end."""

    def pytest_terminal_summary(self, terminalreporter: TerminalReporter) -> None:
        terminalreporter.section("with our session in place of aiosmtpd's")
        for line in self:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def table(pytestconfig: pytest.Config) -> Table:
    lines = Table()
    pytestconfig.pluginmanager.register(lines)
    return lines


@pytest.mark.parametrize("project", PROJECTS, ids=lambda project: project.name)
def test_no_other_test_of_a_project_fails_with_our_session(
    project: Project, installed: Environment, tmp_path: Path, table: Table
) -> None:
    theirs, ours = _run_both(project, installed, tmp_path)
    assert theirs.keys() == ours.keys()
    differing = {name: wrong for name, wrong in ours.items() if wrong and not theirs[name]}
    table.append(_row(project, theirs, ours, differing))
    known = {
        pattern: [name for name in ours if re.fullmatch(pattern, name)]
        for pattern in project.divergences
    }
    listed = {name for names in known.values() for name in names}
    unmeant = {name: wrong for name, wrong in differing.items() if name not in listed}
    assert not unmeant, "\n".join(f"{name}\n{wrong}" for name, wrong in unmeant.items())
    for pattern, names in known.items():
        assert names, f"there is no such test any more, remove it: {pattern}"
        passing = [name for name in names if name not in differing]
        assert not passing, f"they do not differ, remove them: {passing}"
        table.append(f"    {len(names):3}  {pattern}: {project.divergences[pattern]}")
    assert (len(ours), len(differing)) == _documented(project)


def _documented(project: Project) -> tuple[int, int]:
    """Return the number of tests and of differences that the page documents."""
    row = re.search(
        rf"^\| {project.name} .*?\| (\d+) \| (\d+) \|",
        PAGE.read_text(),
        re.IGNORECASE | re.MULTILINE,
    )
    assert row, f"{project.name} is not in {PAGE}"
    return int(row[1]), int(row[2])


def _row(
    project: Project,
    theirs: Mapping[str, str],
    ours: Mapping[str, str],
    differing: Mapping[str, str],
) -> str:
    return (
        f"{project.name}: {len(ours)} tests, {len(differing)} differ"
        f" ({sum(map(bool, theirs.values()))} fail with aiosmtpd's session,"
        f" {sum(map(bool, ours.values()))} with ours)"
    )


def _run_both(
    project: Project, installed: Environment, folder: Path
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the errors of each test, with aiosmtpd's session and with ours."""
    ours = with_our_session(installed, folder / "environment")
    running = []
    for python, report in ((installed.python, "theirs.xml"), (ours, "ours.xml")):
        running.append(_start(project, python, installed.sources / project.name, folder / report))
        if not project.together:
            _wait(running[-1])
    for process in running:
        _wait(process)
    assert list((folder / "environment/witness").iterdir()), "our session was not used"
    return _read(folder / "theirs.xml"), _read(folder / "ours.xml")


def _start(project: Project, python: Path, sources: Path, report: Path) -> subprocess.Popen[bytes]:
    with report.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(
            [
                *(str(python), "-m", *project.command),
                *(word.format(report) for word in project.report),
            ],
            cwd=sources if sources.exists() else report.parent,
            env=clean_environment(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(PATIENCE)
    finally:
        end(process)


def _read(report: Path) -> dict[str, str]:
    assert report.exists(), report.with_suffix(".log").read_text()
    return {
        f"{case.get('classname', '').removeprefix('tests.')}::{case.get('name')}": "\n".join(
            part.text or part.get("message") or part.tag
            for part in case
            if part.tag in {"failure", "error"}
        )
        for case in ET.parse(report).getroot().iter("testcase")
    }
