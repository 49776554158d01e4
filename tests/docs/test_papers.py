"""What the papers say is what the command does."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.installation import ROOT
from support.page import read
from support.peers import peer

from smtpd_fork import __version__
from smtpd_fork.cli.config_file import read_config_file
from smtpd_fork.cli.generate_docs import documents
from smtpd_fork.cli.options import OPTIONS
from smtpd_fork.config import DaemonConfig
from smtpd_fork.errors import MEANINGS, ExitStatus
from smtpd_fork.gate.statistics import CURES

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_what_is_made_of_the_options_is_as_it_would_be_made_now(path: Path) -> None:
    assert path.read_text() == documents()[path], "make papers writes it anew"


def test_the_example_says_what_holds_without_it(tmp_path: Path) -> None:
    """Without the marks, every setting that has a default has that one."""
    example = read("examples/smtpd-fork.toml")
    text = re.sub(r"^#: (.*  # default: .*)$", "", example, flags=re.MULTILINE)
    (tmp_path / "x.toml").write_text(text.replace("#: ", ""))
    values = read_config_file(tmp_path / "x.toml").values
    assert DaemonConfig.build(values) == DaemonConfig.build({})
    assert len(values) > len(OPTIONS) / 2
    assert example.count("\n#: ") == len(OPTIONS)


def test_the_manual_page_is_one(tmp_path: Path) -> None:
    page = ROOT / "packaging/smtpd-fork.8"
    checked = subprocess.run(
        [peer("groff"), "-man", "-ww", "-T", "utf8", page],
        capture_output=True,
        text=True,
        check=True,
    )
    assert checked.stderr == ""
    shown = re.sub(r"\x1b\[\d*m|.\x08", "", checked.stdout)
    for option in OPTIONS:
        assert max(option.opts, key=len) in shown.replace("\u2010", "-")


def test_every_exit_status_is_explained() -> None:
    told = {int(n) for n in re.findall(r"^\| (\d+) \|", read("docs/operation.md"), re.MULTILINE)}
    assert told == set(ExitStatus) == set(MEANINGS)


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


def test_links_to_headings_lead_to_one() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    links = [
        (page, target, heading)
        for page in pages
        for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text())
    ]
    assert links
    for page, target, heading in links:
        text = (page.parent / target if target else page).read_text()
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        slugs = [re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings]
        assert heading in slugs, f"{page.name}: {target}#{heading}"


def test_the_limits_of_the_security_page_have_the_defaults_of_their_options() -> None:
    row = r"^\| .+ \| `(--[a-z-]+)` \| (.*?) ?\| "
    rows = re.findall(row, read("docs/security.md"), re.MULTILINE)
    defaults = {max(option.opts, key=len): option.default_text for option in OPTIONS}
    assert len(rows) > 15
    assert rows == [(name, defaults[name]) for name, _ in rows]


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
