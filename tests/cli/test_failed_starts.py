"""Failed starts print one line, and do not remove files of others."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
from support.daemon import COMMAND, Daemon, run
from support.place import MARK, Place, only_line

from smtpd_fork.cli import start as start_module
from smtpd_fork.cli.setting_sources import SettingSources
from smtpd_fork.config import DaemonConfig
from smtpd_fork.daemon import PidFile, StartupReport
from smtpd_fork.errors import CannotCreateError, OperatingSystemError
from smtpd_fork.observe.logs import setup

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("stream", ["stderr", "stdout"])
def test_a_detached_daemon_cannot_log_to_a_terminal(place: Place, stream: str) -> None:
    ended = place.start("--detach", "--log-to", stream)
    assert ended.returncode == os.EX_CONFIG
    assert stream in only_line(ended)
    assert "--log-to" in ended.stderr
    place.assert_nothing_left()


@pytest.mark.parametrize("detach", [(), ("--detach",)], ids=["in front", "detached"])
def test_a_pid_file_that_cannot_be_written_is_an_error_of_the_start(
    place: Place, detach: tuple[str, ...]
) -> None:
    """It can be opened and locked before the detaching; the disk is full only after it."""
    ended = run(
        *(*place.good, "--handler", "discard", *detach),
        cwd=place.folder,
        environment={MARK: place.mark},
        command=["/bin/sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *COMMAND],
    )
    assert ended.returncode == os.EX_CANTCREAT
    line = only_line(ended)
    assert f"{place.pid_file}: File too large" in line
    assert "--pid-file" in line
    place.assert_nothing_left()


@pytest.mark.parametrize("detach", [(), ("--detach",)], ids=["in front", "detached"])
def test_a_removed_current_directory_is_an_error_of_one_line(
    place: Place, detach: tuple[str, ...]
) -> None:
    """The path of the Maildir is relative to it, so it has no meaning."""
    script = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    ended = run(
        "-l",
        f"127.0.0.1:{place.port}",
        *detach,
        cwd=place.folder,
        environment={MARK: place.mark},
        command=["/bin/sh", "-c", script, "sh", *COMMAND],
    )
    assert ended.returncode in {os.EX_CONFIG, os.EX_CANTCREAT, os.EX_OSERR}
    only_line(ended)
    place.assert_nothing_left()


@pytest.mark.parametrize(("where", "name"), [("syslog", "SYSLOG"), ("journald", "JOURNALD")])
def test_a_missing_log_destination_is_an_error_if_it_was_set(
    where: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, name, str(tmp_path / "log"))
    with pytest.raises(OperatingSystemError, match=f"{where}: there is no {tmp_path}"):
        setup.log_queue_of(DaemonConfig.build({"log_to": where}))


def test_a_missing_syslog_is_no_error_if_it_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container without a syslog service."""
    monkeypatch.setattr(setup, "SYSLOG", str(tmp_path / "log"))
    assert setup.log_queue_of(DaemonConfig.build({"detach": True})) is None


def test_a_failed_start_does_not_remove_the_socket_of_another_process(place: Place) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(place.socket))
        other.listen()
        ended = place.start()
        assert ended.returncode == os.EX_OSERR
        assert f"unix:{place.socket}" in only_line(ended)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(place.socket))
    assert not place.pid_file.exists()


def test_a_failed_start_does_not_remove_the_target_of_a_symbolic_link(place: Place) -> None:
    place.start("--pid-file", "link")
    assert (place.folder / "file").read_text() == "a file"
    assert (place.folder / "link").is_symlink()


def test_a_failed_start_does_not_remove_the_pid_file_of_a_running_daemon(place: Place) -> None:
    with Daemon(
        "-l", "127.0.0.1:0", "--handler", "discard", "--pid-file", "daemon.pid", cwd=place.folder
    ) as daemon:
        ended = place.start()
        assert ended.returncode == os.EX_CANTCREAT
        assert f"{place.pid_file}: a running process has locked it (pid {daemon.process.pid})" in (
            only_line(ended)
        )
        assert "--pid-file" in ended.stderr
        assert place.pid_file.read_text() == f"{daemon.process.pid}\n"
        assert not place.socket.exists()


def test_a_start_after_a_failed_one_succeeds(place: Place) -> None:
    place.start("--handler", "nosuch")
    with Daemon(*place.good, "--handler", "discard", cwd=place.folder) as daemon:
        daemon.deliver()
        assert daemon.stop() == 0
    place.assert_nothing_left()


def test_a_failure_is_reported_after_the_cleanup(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a process that waits for the parent may still find the pid file."""
    read, write = os.pipe()
    report = StartupReport(write)
    heard: list[bytes] = []

    def failed(status: int, reason: str) -> None:
        place.assert_nothing_left()
        StartupReport.failed(report, status, reason)
        heard.append(os.read(read, 1000))

    def full(pid_file: PidFile, _pid: int) -> None:
        raise CannotCreateError(f"cannot write the pid-file {pid_file.path}: disk full")

    def end(status: int) -> None:
        raise SystemExit(status)

    stand_in = StartupReport(write)
    monkeypatch.setattr(stand_in, "failed", failed)
    monkeypatch.setattr(start_module, "detach", lambda: stand_in)
    monkeypatch.setattr(start_module, "set_up_logging", lambda _config, _owner: None)
    monkeypatch.setattr(PidFile, "write", full)
    monkeypatch.setattr(os, "_exit", end)
    sources = SettingSources(
        {
            "listen": (f"127.0.0.1:{place.port}", f"unix:{place.socket}"),
            "pid_file": str(place.pid_file),
            "handler": ("discard",),
            "detach": True,
        },
        {},
        None,
    )
    with pytest.raises(SystemExit, match=str(int(os.EX_CANTCREAT))):
        start_module.start(sources)
    os.close(read)
    assert [line.splitlines()[0] for line in heard] == [b"%d" % os.EX_CANTCREAT]
