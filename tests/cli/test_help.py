"""The help and the version: every option, under its heading, with its default."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest
from support.daemon import CONSOLE_SCRIPT, run
from support.place import only_line

from smtpd_fork.cli.options import OPTIONS, SECTIONS
from smtpd_fork.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

WIDE = {"COLUMNS": "200"}


@pytest.fixture(scope="module")
def help_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    ended = run("--help", cwd=tmp_path_factory.mktemp("help"), environment=WIDE)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def test_help_fits_in_80_columns(help_text: str) -> None:
    assert max(map(len, help_text.splitlines())) <= 80


def test_help_mentions_every_option_once(help_text: str) -> None:
    flags = re.findall(r"^  (-\w(?:, )?)?(--[a-z0-9-]+)?", help_text, re.MULTILINE)
    listed = [flag.rstrip(", ") for pair in flags for flag in pair if flag]
    wanted = [flag for option in OPTIONS for flag in option.opts]
    assert sorted(listed) == sorted([*wanted, "--config", "--version", "-h", "--help"])


def test_help_has_every_option_under_its_heading(help_text: str) -> None:
    assert re.findall(r"^(\w+):$", help_text, re.MULTILINE) == ["Commands", *SECTIONS, "Other"]
    parts = re.split(r"^(\w+):$", help_text, flags=re.MULTILINE)
    texts = dict(zip(parts[1::2], parts[2::2], strict=True))
    for option in OPTIONS:
        assert max(option.opts, key=len) in texts[option.section]
        assert option.help


@pytest.mark.parametrize(
    ("option", "default"),
    [
        ("--port", "2525"),
        ("--backlog", "1024"),
        ("--socket-mode", "0660"),
        ("--max-from-ip", "50"),
        ("--max-message-size", "32M"),
        ("--data-timeout", "180s"),
        ("--min-data-rate", "100"),
        ("--handler-timeout", "300s"),
        ("--session-timeout", "3600s"),
        ("--stress-timeout", "10s"),
        ("--tls-failure-rate", "300/m"),
        ("--max-errors", "20"),
        ("--max-recipients", "1000"),
        ("--max-buffered", "512M"),
        ("--bare-newline", "normalize"),
        ("--max-line-length", "0"),
        ("--handler", "maildir:./Maildir"),
        ("--when-full", "defer"),
        ("--loop", "uvloop"),
    ],
)
def test_help_shows_the_defaults(help_text: str, option: str, default: str) -> None:
    # Where it is listed: other options' texts may name it.
    found = re.search(rf"^  (?:-\w, )?{option} [^[]*\[([^]]*)\]", help_text, re.MULTILINE)
    assert found is not None
    assert found[1] == default


def test_h_is_help(tmp_path: Path, help_text: str) -> None:
    ended = run("-h", cwd=tmp_path, environment=WIDE)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, help_text, "")


def test_version_is_the_packages(tmp_path: Path) -> None:
    ended = run("--version", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"smtpd-fork, version {__version__}\n"


def test_the_console_script_is_the_same_as_the_module(tmp_path: Path, help_text: str) -> None:
    script = [str(CONSOLE_SCRIPT)]
    ended = run("--help", cwd=tmp_path, command=script, environment=WIDE)
    assert (ended.returncode, ended.stdout) == (0, help_text)
    wrong = ("-c", "abc")
    ended, other = run(*wrong, cwd=tmp_path), run(*wrong, cwd=tmp_path, command=script)
    assert (ended.returncode, ended.stderr) == (other.returncode, other.stderr)


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("ch", ["check"]),
        ("--log-level ", ["debug", "info", "warning", "error"]),
        ("--reload", ["--reload-handlers"]),
        ("drain --", ["--timeout", "--wait", "--control", "--help"]),
    ],
)
def test_a_shell_completes_commands_and_options(
    typed: str, completed: list[str], tmp_path: Path
) -> None:
    environment = {
        "_SMTPD_FORK_COMPLETE": "bash_complete",
        "COMP_WORDS": f"smtpd-fork {typed}",
        "COMP_CWORD": str(typed.count(" ") + 1),
    }
    ended = run(cwd=tmp_path, environment=environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.split() == [f"plain,{word}" for word in completed]


@pytest.mark.parametrize("typed", ["--config ", "check --config ", "--tls-cert "])
def test_a_shell_completes_files(typed: str, tmp_path: Path) -> None:
    environment = {
        "_SMTPD_FORK_COMPLETE": "bash_complete",
        "COMP_WORDS": f"smtpd-fork {typed}",
        "COMP_CWORD": str(typed.count(" ") + 1),
    }
    ended = run(cwd=tmp_path, environment=environment)
    assert ended.stdout.split(",")[0] == "file"


def test_a_command_that_is_not_the_first_argument_is_an_error(tmp_path: Path) -> None:
    ended = run("-p", "0", "check", cwd=tmp_path)
    assert ended.returncode == os.EX_USAGE
    assert only_line(ended) == (
        "smtpd-fork: check has to be the first argument: smtpd-fork check [OPTIONS]\n"
    )
