"""The generated and the written documents match the program."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import click
import pytest
from support.installation import ROOT
from support.page import read
from support.peers import peer

from smtpd_fork import __version__
from smtpd_fork.cli.command import SUBCOMMANDS
from smtpd_fork.cli.config_file import read_config_file
from smtpd_fork.cli.generate_docs import documents
from smtpd_fork.cli.options import OPTIONS
from smtpd_fork.config import DaemonConfig
from smtpd_fork.errors import MEANINGS, ExitStatus
from smtpd_fork.gate.statistics import CURES

if TYPE_CHECKING:
    from pathlib import Path


MOST_OF_A_PICTURE = 150_000
"""Maximum size of a picture, bytes."""


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_the_generated_documents_are_up_to_date(path: Path) -> None:
    assert path.read_text() == documents()[path], "run make papers"


def test_the_example_shows_the_defaults(tmp_path: Path) -> None:
    """Without the comment marks, every setting that has a default has its default value."""
    example = read("examples/smtpd-fork.toml")
    text = re.sub(r"^#: (.*  # default: .*)$", "", example, flags=re.MULTILINE)
    (tmp_path / "x.toml").write_text(text.replace("#: ", ""))
    values = read_config_file(tmp_path / "x.toml").values
    assert DaemonConfig.build(values) == DaemonConfig.build({})
    assert len(values) > len(OPTIONS) / 2
    assert example.count("\n#: ") == len(OPTIONS)


def test_groff_accepts_the_manual_page(tmp_path: Path) -> None:
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


def test_the_manual_page_has_every_command_with_its_arguments_and_options() -> None:
    page = read("packaging/smtpd-fork.8").replace("\\-", "-")
    sections = dict(re.findall(r"^\.SS (.*)\n((?:(?!\.S[SH]).*\n)*)", page, re.MULTILINE))
    assert {"kick ID|NET", "deny [NET] [TEXT]...", "explain ID"} < sections.keys()
    found = {title.partition(" ")[0]: text for title, text in sections.items()}
    for name, chosen in SUBCOMMANDS.items():
        for option in set(chosen.params).difference(OPTIONS):
            if isinstance(option, click.Option) and option.name not in {"control", "config_file"}:
                assert f".B {max(option.opts, key=len)}" in found[name]
    for heading in ("ENVIRONMENT", "FILES", "EXAMPLES"):
        assert f"\n.SH {heading}\n.TP\n" in page


def test_every_exit_status_is_explained() -> None:
    documented = {
        int(n) for n in re.findall(r"^\| (\d+) \|", read("docs/operation.md"), re.MULTILINE)
    }
    assert documented == set(ExitStatus) == set(MEANINGS)


@pytest.mark.parametrize("page", sorted(p.name for p in (ROOT / "docs").glob("*.md")))
def test_every_page_is_reached_from_the_readme(page: str) -> None:
    """By the index, whose order test_site.py checks, or by a link of its own."""
    assert "(docs/index.md)" in read("README.md")
    assert page.removesuffix(".md") in ["index", *read("docs/index.md").split()]


def test_links_to_files_have_a_target() -> None:
    links = [
        (page, target)
        for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())
    ]
    assert links
    for page, target in links:
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_links_to_headings_lead_to_one() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
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


def test_the_readme_says_how_to_install_it_and_compares_it_before_the_rest() -> None:
    """No host of an index is named; the options have a separate page."""
    text = read("README.md")
    assert "`pip install 'smtpd-fork[" in text
    assert not re.search(r"--(extra-)?index-url|pypi", text)
    for server in ("Postfix", "Haraka", "aiosmtpd", "qpsmtpd", "OpenSMTPD", "mailpit"):
        assert re.search(rf"^\| {server}\b.* \|$", text, re.MULTILINE)
    assert "| `--" not in text


def test_the_pictures_of_the_readme_exist_and_are_small() -> None:
    pictures = re.findall(r'src(?:set)?="([^"]+)"', read("README.md"))
    assert pictures == ["docs/status-dark.png", "docs/status-light.png"]
    assert all(0 < (ROOT / picture).stat().st_size < MOST_OF_A_PICTURE for picture in pictures)


def test_the_changelog_has_this_version_and_unreleased_changes() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    headings = re.findall(r"^## \[(.+)\](.*)$", read("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == ("Unreleased", "")
    version, date = headings[1]
    assert version == __version__
    assert re.fullmatch(r" - \d{4}-\d\d-\d\d", date)


def test_every_rule_of_the_gate_is_in_its_table_of_names() -> None:
    documented = re.findall(r"^\| `([a-z_]+)` \|", read("docs/gate.md"), re.MULTILINE)
    assert sorted(documented) == sorted(CURES)
    for rule in documented:
        if rule not in {"paused", "limit_connections", "descriptors"}:
            assert "--" + rule.replace("_", "-") in read("docs/gate.md")
