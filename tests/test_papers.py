"""What the papers say is what the command does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from smtpd_fork import __version__
from smtpd_fork.cli.options import OPTIONS
from smtpd_fork.errors import ExitStatus
from smtpd_fork.gate.statistics import CURES

ROOT = Path(__file__).parents[1]


def read(name: str) -> str:
    return (ROOT / name).read_text()


def test_the_options_of_the_readme_are_those_of_the_command_in_order_with_their_defaults() -> None:
    table = read("README.md").partition("<!-- options")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in table.splitlines()[3:]]
    told = [(flags.strip("`"), default) for flags, default, _ in rows]
    assert told == [
        (
            ", ".join(option.opts) + (f" {option.metavar}" if not option.is_flag else ""),
            option.default_text,
        )
        for option in OPTIONS
    ]


def test_every_exit_status_is_explained() -> None:
    told = {int(n) for n in re.findall(r"^\| (\d+) \|", read("docs/operation.md"), re.MULTILINE)}
    assert told == set(ExitStatus)


@pytest.mark.parametrize("page", sorted(p.name for p in (ROOT / "docs").glob("*.md")))
def test_every_page_is_reached_from_the_readme(page: str) -> None:
    assert f"(docs/{page})" in read("README.md")


def test_links_to_files_lead_somewhere() -> None:
    links = [
        (page, target)
        for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())
    ]
    assert links
    for page, target in links:
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_opens_with_the_two_commands() -> None:
    commands = re.findall(r"^\$ (\S+ \S+)", read("README.md"), re.MULTILINE)
    assert commands[:2] == ["make run", "make test"]


def test_the_changelog_knows_what_comes() -> None:
    assert "## [Unreleased]" in read("CHANGELOG.md")
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_every_rule_of_the_gate_is_in_its_table_of_names() -> None:
    told = re.findall(r"^\| `([a-z_]+)` \|", read("docs/gate.md"), re.MULTILINE)
    assert sorted(told) == sorted(CURES)
    for rule in told:
        if rule not in {"paused", "limit_connections", "descriptors"}:
            assert "--" + rule.replace("_", "-") in read("docs/gate.md")
