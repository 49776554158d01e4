"""docs/architecture.md: the files that it names exist, and its steps add a rule to a copy."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest
from support.installation import ROOT
from support.machine import OF_CLONE, Machine
from support.page import Block, blocks_of, read
from support.peers import peers
from support.transcript import commands_of

if TYPE_CHECKING:
    from pathlib import Path

PAGE = "docs/architecture.md"

ADDED = {"smtpd_fork/gate/rules/local.py", "tests/docs/test_architecture.py"}
"""Files that the page names and the project may not have: its example creates one."""

BESIDE = ("smtpd_fork/dialogue", "smtpd_fork/observe/control")
"""Packages of files that the page names without them, beside one with them."""

CLONE = (
    *(*OF_CLONE, ".github", ".pre-commit-config.yaml", "CHANGELOG.md", "CONTRIBUTING.md"),
    *("Dockerfile", "README.md", "SECURITY.md", "docs", "smtpd_fork", "tests"),
)


def test_every_file_that_the_page_names_exists() -> None:
    text = re.sub(r"^```.*?^```", "", read(PAGE), flags=re.DOTALL | re.MULTILINE)
    named = set(re.findall(r"`([\w/.-]+(?:/|\.py|\.md|\.toml))`", text)) - ADDED
    assert len(named) > 40
    bases = [ROOT / base for base in ("", "smtpd_fork", *BESIDE)]
    missing = {name for name in named if not any((base / name).exists() for base in bases)}
    assert not missing, sorted(missing)


def test_every_package_has_its_floor_on_the_page() -> None:
    rows = re.findall(r"^\| `smtpd_fork/(\w+)/` \|", read(PAGE), re.MULTILINE)
    packages = {path.parent.name for path in ROOT.glob("smtpd_fork/*/__init__.py")}
    assert set(rows) == packages
    [block] = re.findall(r"^layers = \[(.*?)^\]", read("pyproject.toml"), re.MULTILINE | re.DOTALL)
    layers = re.findall(r"smtpd_fork\.(\w+)", block)
    assert rows == [layer for layer in layers if layer in packages]


def patched(text: str, changes: str) -> str:
    """Return *text* after the hunks of a diff; each replaced text must occur once."""
    for hunk in re.split(r"^@@\n", changes, flags=re.MULTILINE):
        lines = [line or " " for line in hunk.splitlines()]
        old = "\n".join(["", *(line[1:] for line in lines if line[0] != "+"), ""])
        new = "\n".join(["", *(line[1:] for line in lines if line[0] != "-"), ""])
        assert text.count(old) == 1, f"the page has it {text.count(old)} times:\n{old}"
        text = text.replace(old, new)
    return text


def write(block: Block, folder: Path) -> None:
    """Write a file of the page, or change one."""
    path = folder / block.marks["file"]
    if block.language == "diff":
        path.write_text(patched(path.read_text(), block.text))
    else:
        assert not path.exists(), path
        path.write_text(block.text)


def set_up_python(machine: Machine, programs: Path) -> None:
    """Let ``make`` and ``smtpd-fork`` run the copy of the project in the machine."""
    for script, words in [
        (programs / "smtpd-fork", "-m smtpd_fork"),
        (machine.here / ".venv/bin/python", ""),
    ]:
        script.write_text(f'#!/bin/sh\nPYTHONPATH=/srv exec {sys.executable} {words} "$@"\n')
        script.chmod(0o755)
    (machine.here / ".venv/.with-test").touch()


@pytest.mark.timeout(300)
def test_the_steps_of_the_page_add_a_rule_that_refuses_a_client(tmp_path: Path) -> None:
    peers("make", "nc", "curl", "groff")
    programs, folder = tmp_path / "bin", tmp_path / "machine"
    for each in (programs, folder):
        each.mkdir()
    machine = Machine(folder, [programs], of_clone=CLONE)
    set_up_python(machine, programs)
    with machine:
        for block in blocks_of(ROOT / PAGE):
            if "file" in block.marks:
                write(block, machine.here)
            else:
                for command in commands_of(block.text, block.line):
                    machine.run(command)
