"""Files that another user may have planted are used neither as a log nor as a pid-file."""

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
def shared(tmp_path: Path) -> Path:
    """Return a world-writable directory with the sticky bit, like /tmp."""
    directory = tmp_path / "shared"
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


def test_a_link_of_the_same_user_is_followed_in_any_directory(shared: Path, precious: Path) -> None:
    (shared / "absolute").symlink_to(precious)
    (shared / "relative").symlink_to("../precious")
    (shared / "directory").symlink_to("..")
    (shared / "chain").symlink_to("directory/shared/relative")
    (shared / "new").symlink_to("made")
    for name in ("absolute", "relative", "directory/precious", "chain", "../shared/chain"):
        appended(shared / name)
    assert precious.read_text() == "precious\n" + "more\n" * 5
    appended(shared / "new")
    assert (shared / "made").read_text() == "more\n"


def test_links_in_a_circle_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        safe_open(tmp_path / "a", APPEND)


def test_the_links_of_proc_are_followed() -> None:
    """/dev/stderr is such a link: its target is not a path."""
    read, write = os.pipe()
    appended(proc("self", "fd", write))
    assert os.read(read, 10) == b"more\n"
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("mode", [0o1777, 0o755])
def test_root_follows_no_link_of_another_user(shared: Path, precious: Path, mode: int) -> None:
    needs_root()
    shared.chmod(mode)
    planted(shared / "log", precious)
    planted(shared / "directory", precious.parent)
    (shared / "chain").symlink_to("log")
    for name in ("log", "directory/precious", "chain"):
        with pytest.raises(PermissionError, match="is a link of another user"):
            safe_open(shared / name, APPEND)
    assert precious.read_text() == "precious\n"


def test_root_uses_no_file_of_another_user_in_a_world_writable_directory(shared: Path) -> None:
    needs_root()
    path = shared / "log"
    path.touch()
    os.chown(path, NOBODY, NOBODY)
    with pytest.raises(PermissionError, match="it belongs to another user"):
        safe_open(path, APPEND)
    shared.chmod(0o755)  # now root is the owner
    appended(path)


def test_a_file_with_hard_links_is_refused_in_a_world_writable_directory(
    shared: Path, precious: Path
) -> None:
    path = shared / "log"
    path.hardlink_to(precious)
    with pytest.raises(PermissionError, match="several hard links"):
        safe_open(path, APPEND)
    assert precious.read_text() == "precious\n"


def test_the_log_is_not_written_through_a_planted_link(shared: Path, precious: Path) -> None:
    needs_root()
    planted(shared / "smtpd.log", precious)
    options = (*LOCAL, "--log-to", "shared/smtpd.log")
    for command in ((), ("check",)):
        ended = run(*command, *options, cwd=shared.parent)
        assert ended.returncode == os.EX_CANTCREAT
        assert f"cannot log to {shared}/smtpd.log: smtpd.log is a link" in ended.stderr
    assert precious.read_text() == "precious\n"


def test_a_pid_file_of_another_user_is_not_used(shared: Path) -> None:
    needs_root()
    path = shared / "daemon.pid"
    path.write_text("1\n")
    os.chown(path, NOBODY, NOBODY)
    ended = run(*LOCAL, "--pid-file", "shared/daemon.pid", cwd=shared.parent)
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
