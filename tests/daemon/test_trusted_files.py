"""Files that another user may have planted: they are not logged to, and hold no pid."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support.daemon import LOCAL, Daemon, run
from support.peers import needs_root, proc

from smtpd_fork.safe_open import safe_open

if TYPE_CHECKING:
    from pathlib import Path

NOBODY = 65534
APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT


@pytest.fixture
def everybodys(tmp_path: Path) -> Path:
    """Return a directory as /tmp is."""
    directory = tmp_path / "everybodys"
    directory.mkdir()
    directory.chmod(0o1777)
    return directory


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    path = tmp_path / "precious"
    path.write_text("precious\n")
    return path


def planted(link: Path, target: Path | str) -> Path:
    link.symlink_to(target)
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    return link


def appended(path: Path) -> None:
    descriptor = safe_open(path, APPEND)
    os.write(descriptor, b"more\n")
    os.close(descriptor)


def test_a_link_of_ours_is_followed_wherever_it_is(everybodys: Path, precious: Path) -> None:
    (everybodys / "absolute").symlink_to(precious)
    (everybodys / "relative").symlink_to("../precious")
    (everybodys / "directory").symlink_to("..")
    (everybodys / "chain").symlink_to("directory/everybodys/relative")
    (everybodys / "new").symlink_to("made")
    for name in ("absolute", "relative", "directory/precious", "chain", "../everybodys/chain"):
        appended(everybodys / name)
    assert precious.read_text() == "precious\n" + "more\n" * 5
    appended(everybodys / "new")
    assert (everybodys / "made").read_text() == "more\n"


def test_links_in_a_circle_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        safe_open(tmp_path / "a", APPEND)


def test_the_links_of_proc_are_followed() -> None:
    """As /dev/stderr is one: its text is no path."""
    read, write = os.pipe()
    appended(proc("self", "fd", write))
    assert os.read(read, 10) == b"more\n"
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("mode", [0o1777, 0o755])
def test_root_follows_no_link_of_another_user(everybodys: Path, precious: Path, mode: int) -> None:
    needs_root()
    everybodys.chmod(mode)
    planted(everybodys / "log", precious)
    planted(everybodys / "directory", precious.parent)
    (everybodys / "chain").symlink_to("log")
    for name in ("log", "directory/precious", "chain"):
        with pytest.raises(PermissionError, match="is a link of another user"):
            safe_open(everybodys / name, APPEND)
    assert precious.read_text() == "precious\n"


def test_root_takes_no_file_of_another_user_where_everybody_may_write(everybodys: Path) -> None:
    needs_root()
    path = everybodys / "log"
    path.touch()
    os.chown(path, NOBODY, NOBODY)
    with pytest.raises(PermissionError, match="it belongs to another user"):
        safe_open(path, APPEND)
    everybodys.chmod(0o755)  # now it was an administrator who put it there
    appended(path)


def test_a_file_with_another_name_is_refused_where_everybody_may_write(
    everybodys: Path, precious: Path
) -> None:
    path = everybodys / "log"
    path.hardlink_to(precious)
    with pytest.raises(PermissionError, match="several hard links"):
        safe_open(path, APPEND)
    assert precious.read_text() == "precious\n"


def test_the_log_is_not_written_by_way_of_a_planted_link(everybodys: Path, precious: Path) -> None:
    needs_root()
    planted(everybodys / "smtpd.log", precious)
    options = (*LOCAL, "--log-to", "everybodys/smtpd.log")
    for command in ((), ("check",)):
        ended = run(*command, *options, cwd=everybodys.parent)
        assert ended.returncode == os.EX_CANTCREAT
        assert f"cannot log to {everybodys}/smtpd.log: smtpd.log is a link" in ended.stderr
    assert precious.read_text() == "precious\n"


def test_a_pid_file_of_another_user_is_not_used(everybodys: Path) -> None:
    needs_root()
    path = everybodys / "daemon.pid"
    path.write_text("1\n")
    os.chown(path, NOBODY, NOBODY)
    ended = run(*LOCAL, "--pid-file", "everybodys/daemon.pid", cwd=everybodys.parent)
    assert ended.returncode == os.EX_CANTCREAT
    assert "cannot write pid file" in ended.stderr
    assert "it belongs to another user" in ended.stderr
    assert path.read_text() == "1\n"


def test_the_daemon_logs_to_dev_stderr(tmp_path: Path) -> None:
    proc()
    with Daemon(*LOCAL, "--log-to", "/dev/stderr", cwd=tmp_path) as daemon:
        daemon.deliver()
        assert daemon.stop() == 0
    assert daemon.log.endswith("INFO stopped")
