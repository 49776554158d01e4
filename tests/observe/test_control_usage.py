"""The command line of the control commands: their help, and usage errors."""

from __future__ import annotations

import os
import re
import socket
from typing import TYPE_CHECKING

import pytest
from support.control import SOCKET, ask, command, says
from support.daemon import PATIENCE, run
from support.page import read
from support.place import only_line

from smtpd_fork.cli.command import SUBCOMMANDS
from smtpd_fork.cli.control import CONTROL_COMMANDS

if TYPE_CHECKING:
    from pathlib import Path


ALL = (
    *("status", "sessions", "kick", "limits", "reload", "deny", "undeny"),
    *("pause", "resume", "drain", "explain", "fleet"),
)


def test_every_command_exists_and_has_its_help(tmp_path: Path) -> None:
    assert tuple(CONTROL_COMMANDS) == ALL
    assert set(ALL) <= SUBCOMMANDS.keys()
    for name in ALL:
        ended = run(name, "-h", cwd=tmp_path, environment={"COLUMNS": "200"})
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.startswith(f"Usage: smtpd-fork {name} [OPTIONS]")
        assert "--control PATH" in ended.stdout
        assert max(map(len, ended.stdout.splitlines())) <= 80
        assert f"| `smtpd-fork {name}" in read("docs/control.md")


@pytest.mark.parametrize("name", ALL)
def test_without_a_daemon_the_status_is_69(tmp_path: Path, name: str) -> None:
    words = {"kick": ("x",), "explain": ("x",), "undeny": ("192.0.2.1",)}.get(name, ())
    ended = command(tmp_path, name, *words)
    assert ended.returncode == os.EX_UNAVAILABLE
    assert f"no daemon answers at {SOCKET}" in only_line(ended)


@pytest.mark.parametrize(
    "words",
    [
        ("status", "--nonsense"),
        ("sessions", "too", "much"),
        ("kick",),
        ("kick", "id", "192.0.2.1"),
        ("explain",),
        ("drain", "--timeout", "soon"),
    ],
)
def test_invalid_arguments_are_usage_errors(
    place_with_daemon: Path, words: tuple[str, ...]
) -> None:
    ended = command(place_with_daemon, *words)
    assert ended.returncode == os.EX_USAGE
    assert only_line(ended)


@pytest.mark.parametrize("source", ["some:body", "192.0.2.1/24", "192.0.2.0/33", "\x1b[2J."])
def test_an_invalid_address_is_a_usage_error(place_with_daemon: Path, source: str) -> None:
    ended = command(place_with_daemon, "kick", source)
    assert ended.returncode == os.EX_USAGE
    assert "\x1b" not in only_line(ended)


def test_without_a_path_the_error_says_where_to_set_one(tmp_path: Path) -> None:
    ended = run("status", cwd=tmp_path)
    assert ended.returncode == os.EX_USAGE
    assert "--control PATH, or SMTPD_FORK_CONTROL" in only_line(ended)


@pytest.mark.parametrize(
    "name",
    [b"\x1b]0;owned\x07", b"a\x1b[2J", "\x9b2J\u202e".encode(), b"\xff\xfe", b"[red]x[/]" * 9],
)
def test_a_name_with_escape_sequences_does_not_reach_the_terminal(
    place_with_daemon: Path, name: bytes
) -> None:
    (port,) = re.findall(r":(\d+)", str(ask(place_with_daemon, "status")["listeners"]))
    with socket.create_connection(("127.0.0.1", int(port)), timeout=PATIENCE) as client:
        lines = client.makefile("rb")
        assert lines.readline().startswith(b"220 ")
        client.sendall(b"HELO " + name + b"\r\n")
        assert lines.readline()
        for words in (("sessions",), ("sessions", "--json")):
            text = says(place_with_daemon, *words)
            assert len(text.splitlines()) >= 1
            assert all(char.isprintable() or char == "\n" for char in text), text
