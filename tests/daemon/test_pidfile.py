"""The pid-file: the lock shows that a daemon runs, and not the number in the file."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.peers import needs_root

from smtpd_fork.daemon import PidFile
from smtpd_fork.errors import CannotCreateError, ExitStatus

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "daemon.pid"


def test_it_contains_the_pid_and_a_line_end(path: Path) -> None:
    pid_file = PidFile.acquire(path)
    pid_file.write(4711)
    assert path.read_bytes() == b"4711\n"
    pid_file.remove()


def test_users_who_may_not_write_it_may_read_it(path: Path) -> None:
    old = os.umask(0o022)
    try:
        pid_file = PidFile.acquire(path)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o644
    pid_file.remove()


def test_a_shorter_pid_leaves_nothing_of_a_longer_one(path: Path) -> None:
    path.write_text("123456789\nand more\n")
    pid_file = PidFile.acquire(path)
    pid_file.write(42)
    assert path.read_text() == "42\n"
    pid_file.remove()


def test_the_error_of_a_second_process_names_the_pid_of_the_first(path: Path) -> None:
    first = PidFile.acquire(path)
    first.write(4711)
    with pytest.raises(CannotCreateError) as caught:
        PidFile.acquire(path)
    assert str(path) in str(caught.value)
    assert "a running process has locked it (pid 4711)" in str(caught.value)
    assert caught.value.exit_status == ExitStatus.CANNOT_CREATE
    assert path.read_text() == "4711\n"
    first.remove()


@pytest.mark.parametrize("content", ["", "garbage\n", "\0" * 40, "-1\n"])
def test_a_locked_file_without_a_pid_is_still_locked(path: Path, content: str) -> None:
    first = PidFile.acquire(path)
    path.write_text(content)
    with pytest.raises(CannotCreateError, match=r"a running process has locked it$"):
        PidFile.acquire(path)
    first.remove()


@pytest.mark.parametrize("content", ["", "1\n", "{own}\n", "999999999\n", "garbage"])
def test_an_unlocked_file_does_not_prevent_a_lock(path: Path, content: str) -> None:
    path.write_text(content.format(own=os.getpid()))
    pid_file = PidFile.acquire(path)
    pid_file.write(os.getpid())
    assert path.read_text() == f"{os.getpid()}\n"
    pid_file.remove()


def test_a_file_that_is_too_large_is_refused_and_not_changed(path: Path) -> None:
    path.write_text("-----BEGIN PRIVATE KEY-----\n" * 4)
    before = path.read_text()
    with pytest.raises(CannotCreateError, match=r"it has 112 bytes, so it is not a pid file$"):
        PidFile.acquire(path)
    assert path.read_text() == before


def test_it_can_be_locked_again_after_it_was_removed(path: Path) -> None:
    PidFile.acquire(path).remove()
    assert not path.exists()
    PidFile.acquire(path).remove()


def test_it_can_be_locked_again_after_it_was_closed(path: Path) -> None:
    PidFile.acquire(path).close()
    assert path.exists()
    PidFile.acquire(path).remove()


def test_a_file_that_replaced_it_is_not_removed(path: Path) -> None:
    pid_file = PidFile.acquire(path)
    pid_file.write(1)
    path.unlink()
    path.write_text("somebody else's\n")
    assert not pid_file.is_ours()
    pid_file.remove()
    assert path.read_text() == "somebody else's\n"


def test_removing_a_file_that_does_not_exist_is_not_an_error(path: Path) -> None:
    pid_file = PidFile.acquire(path)
    path.unlink()
    assert not pid_file.is_ours()
    pid_file.remove()
    assert not path.exists()


def test_a_file_that_is_removed_between_open_and_lock_is_created_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last owner removes it then: a lock of the old file would have no effect."""
    real = PidFile._lock
    removed: list[PidFile] = []

    def lock(pid_file: PidFile) -> bool:
        if not removed:
            path.unlink()
            removed.append(pid_file)
        return real(pid_file)

    monkeypatch.setattr(PidFile, "_lock", lock)
    pid_file = PidFile.acquire(path)
    assert removed
    assert pid_file.is_ours()
    with pytest.raises(CannotCreateError):
        PidFile.acquire(path)
    pid_file.remove()


READER = """\
import fcntl, os, sys
file = open(sys.argv[1])
if sys.argv[2] == "flock":
    fcntl.flock(file, fcntl.LOCK_EX)
elif sys.argv[2] == "lockf":
    fcntl.lockf(file, fcntl.LOCK_SH)
print("locked", flush=True)
input()
"""


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_a_read_lock_on_a_stale_file_does_not_prevent_a_start(path: Path, kind: str) -> None:
    path.write_text("4711\n")
    command = [sys.executable, "-c", READER, str(path), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"locked\n"
        pid_file = PidFile.acquire(path)
        pid_file.write(42)
        assert path.read_text() == "42\n"
        with pytest.raises(CannotCreateError, match="a running process has locked it"):
            PidFile.acquire(path)
        pid_file.remove()
        reader.communicate(b"\n")
    assert list(path.parent.iterdir()) == []


def test_a_reader_cannot_lock_a_file_that_is_locked(path: Path) -> None:
    """A read lock fails while the write lock exists."""
    pid_file = PidFile.acquire(path)
    with path.open() as file, pytest.raises(BlockingIOError):
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    pid_file.remove()


def test_a_file_of_another_user_is_refused(path: Path) -> None:
    needs_root()  # only root can change the owner of a file
    path.write_text("1\n")
    os.chown(path, 65534, 65534)
    with pytest.raises(CannotCreateError, match=r"it belongs to another user \(uid 65534\)"):
        PidFile.acquire(path)
    assert path.read_text() == "1\n"


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646])
def test_a_file_that_other_users_may_write_is_refused(path: Path, mode: int) -> None:
    path.write_text("1\n")
    path.chmod(mode)
    with pytest.raises(CannotCreateError, match=f"other users may write to it \\(mode {mode:o}"):
        PidFile.acquire(path)
    assert path.read_text() == "1\n"


def test_a_file_with_several_hard_links_is_refused(path: Path) -> None:
    precious = path.with_name("precious")
    precious.write_text("precious")
    path.hardlink_to(precious)
    with pytest.raises(CannotCreateError, match="several hard links"):
        PidFile.acquire(path)
    assert precious.read_text() == "precious"


def test_a_path_that_is_not_a_regular_file_is_refused_without_blocking(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(CannotCreateError, match="it is not a file"):
        PidFile.acquire(path)


def test_a_symbolic_link_is_not_followed(path: Path) -> None:
    target = path.with_name("target")
    target.write_text("precious")
    path.symlink_to(target)
    with pytest.raises(CannotCreateError, match=str(path)):
        PidFile.acquire(path)
    assert target.read_text() == "precious"


def test_a_directory_is_refused(path: Path) -> None:
    path.mkdir()
    with pytest.raises(CannotCreateError, match="Is a directory"):
        PidFile.acquire(path)


def test_a_missing_directory_is_not_created(path: Path) -> None:
    with pytest.raises(CannotCreateError, match="does not exist"):
        PidFile.acquire(path / "below")
    assert not path.exists()


def test_a_relative_path_is_made_absolute(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    pid_file = PidFile.acquire(path.name)
    assert pid_file.path == path
    monkeypatch.chdir("/")
    pid_file.remove()
    assert not path.exists()


def test_a_child_process_inherits_the_lock_and_keeps_it(path: Path) -> None:
    """The daemon is forked with the lock; a program that it executes does not inherit it."""
    pid_file = PidFile.acquire(path)
    waits = [sys.executable, "-c", "input()"]
    with (
        subprocess.Popen(waits, stdin=subprocess.PIPE, pass_fds=[pid_file.descriptor]) as successor,
        subprocess.Popen(waits, stdin=subprocess.PIPE, close_fds=False) as stranger,
    ):
        pid_file.close()
        with pytest.raises(CannotCreateError, match="a running process has locked it"):
            PidFile.acquire(path)
        successor.communicate(b"\n")
        PidFile.acquire(path).remove()
        stranger.communicate(b"\n")
