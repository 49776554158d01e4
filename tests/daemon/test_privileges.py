"""Missing privileges: the error is one line, and no files are left behind."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

import pytest
from support.daemon import run
from support.peers import cannot, needs_root, proc
from support.place import MARK, Place, assert_no_process, only_line

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("detach", [(), ("--detach",)], ids=["foreground", "detached"])
def test_a_privileged_port_needs_privileges(
    detach: tuple[str, ...], command_for_nobody: list[str], public: Path
) -> None:
    first = int(proc("sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first <= 1:
        cannot("no port takes privileges")
    place = f"127.0.0.1:{first - 1}"
    options = ("-l", place, "--handler", "discard", *detach)
    ended = run(*options, cwd=public, command=command_for_nobody, user="nobody")
    assert ended.returncode == os.EX_NOPERM
    assert f"{place}: permission denied" in only_line(ended)
    assert "-l/--listen-address" in ended.stderr


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (("-u", "daemon"), os.EX_NOPERM, ("'daemon'", "only root", "-u/--user")),
        (("-u", "no-such-user"), os.EX_NOUSER, ("'no-such-user'", "-u/--user")),
        (
            ("--pid-file", "daemon.pid"),
            os.EX_CANTCREAT,
            ("daemon.pid", "Permission denied", "--pid-file"),
        ),
        (
            ("-l", "unix:sock"),
            os.EX_CANTCREAT,
            ("/sock", "permission denied", "-l/--listen-address"),
        ),
        (("--log-to", "log"), os.EX_CANTCREAT, ("/log", "Permission denied", "--log-to")),
        (
            ("--handler", "maildir:Maildir"),
            os.EX_CANTCREAT,
            ("/Maildir", "Permission denied", "--handler"),
        ),
        (
            ("--tls-cert", "key.pem"),
            os.EX_CONFIG,
            ("key.pem", "Permission denied", "--tls-cert"),
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_missing_privilege_is_an_error_in_one_line(
    options: tuple[str, ...],
    status: int,
    words: tuple[str, ...],
    command_for_nobody: list[str],
    public: Path,
) -> None:
    (public / "key.pem").touch(0o600)
    base = ["-l", "127.0.0.1:0"]
    if "--handler" not in options:
        base += ["--handler", "discard"]
    ended = run(*base, *options, cwd=public, command=command_for_nobody, user="nobody")
    assert ended.returncode == status
    for word in words:
        assert word in only_line(ended)


@pytest.mark.parametrize("detach", [(), ("--detach",)], ids=["foreground", "detached"])
def test_an_error_after_dropping_privileges_leaves_no_files_of_root(
    detach: tuple[str, ...], command_for_nobody: list[str], public: Path
) -> None:
    """Root creates the pid-file and the socket; the Maildir fails after dropping privileges."""
    mark = uuid.uuid4().hex
    ended = run(
        *("-l", "127.0.0.1:0", "-l", "unix:smtp.sock", "--pid-file", "daemon.pid", "-u", "nobody"),
        *("--handler", "maildir:Maildir", *detach),
        cwd=public,
        command=command_for_nobody,
        environment={MARK: mark},
    )
    assert ended.returncode == os.EX_CANTCREAT
    said = f"{public}/Maildir cannot be created by user nobody: Permission denied"
    assert said in only_line(ended)
    assert "--handler" in ended.stderr
    assert list(public.iterdir()) == []
    assert_no_process(mark)


def test_privileges_cannot_be_dropped_to_root(place: Place) -> None:
    needs_root()
    ended = place.start("-u", "root")
    assert ended.returncode == os.EX_NOPERM
    assert "'root'" in only_line(ended)
    assert "-u/--user" in ended.stderr
    place.assert_nothing_left()
