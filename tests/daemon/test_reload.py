"""Reloads of a daemon: SIGHUP applies the settings of its file; an invalid file changes nothing."""

from __future__ import annotations

import os
import signal
import smtplib
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.daemon import PATIENCE, Daemon, Detached, messages, on_both_loops
from support.daemon import until as wait_until
from support.peers import peer
from support.ports import free_ports

if TYPE_CHECKING:
    from pathlib import Path


FIRST = """
hostname = "one.example"
log-level = "info"
[[listener]]
address = "127.0.0.1"
port = {one}
[[handler]]
use = "maildir"
argument = "first"
[gate]
max-from-ip = 5
"""

SECOND = """
hostname = "two.example"
log-level = "debug"
[[listener]]
address = "127.0.0.1"
port = {one}
[[listener]]
address = "127.0.0.2"
port = {two}
[[handler]]
use = "maildir"
argument = "second"
[gate]
max-from-ip = 2
"""


def reload(daemon: Daemon, path: Path, text: str, says: str) -> None:
    path.write_text(text)
    daemon.signal(signal.SIGHUP)
    daemon.wait_for(says)


def deliver(client: smtplib.SMTP, body: str) -> None:
    client.sendmail("a@example.com", ["b@example.com"], f"Subject: x\r\n\r\n{body}\r\n")


def test_all_settings_of_the_file_apply_after_a_reload(tmp_path: Path) -> None:
    ports = {"one": free_ports(1, "127.0.0.1")[0], "two": free_ports(1, "127.0.0.2")[0]}
    path = tmp_path / "smtpd-fork.toml"
    path.write_text(FIRST.format_map(ports))
    with Daemon("--config", str(path), cwd=tmp_path) as daemon, daemon.smtp() as before:
        assert before.ehlo()[1].startswith(b"one.example")
        reload(daemon, path, SECOND.format_map(ports), "configuration reloaded")
        # A session keeps the settings of its start.
        assert before.ehlo()[1].startswith(b"one.example")
        deliver(before, "old")
        with smtplib.SMTP("127.0.0.2", ports["two"]) as after:
            assert after.ehlo()[1].startswith(b"two.example")
            deliver(after, "new")
            with pytest.raises(smtplib.SMTPConnectError, match="421"):
                daemon.smtp()  # 127.0.0.1 has two sessions, which is the new limit
        reload(daemon, path, FIRST.format_map(ports), "configuration reloaded")
        daemon.wait_for("no longer listening on 127.0.0.2")
        with pytest.raises(ConnectionRefusedError):
            smtplib.SMTP("127.0.0.2", ports["two"])
    assert "old" in messages(tmp_path / "first")[0]
    assert "new" in messages(tmp_path / "second")[0]


def test_an_invalid_file_changes_nothing_and_is_logged(tmp_path: Path) -> None:
    ports = {"one": free_ports(1, "127.0.0.1")[0], "two": free_ports(1, "127.0.0.2")[0]}
    good = FIRST.format_map(ports)
    path = tmp_path / "smtpd-fork.toml"
    path.write_text(good)
    (tmp_path / "in the way").touch()
    with (
        Daemon("--config", str(path), cwd=tmp_path) as daemon,
        socket.create_server(("127.0.0.2", ports["two"])),
    ):
        for text, says in (
            (good + "x = [", rf"reload failed, previous settings stay in force: {path}: "),
            (good + "max-from-ipp = 3", "did you mean max-from-ip?"),
            (good.replace("= 5", "= -5"), rf"{path}, line 11: gate.max-from-ip -5: "),
            (good.replace('"maildir"', '"no:handler"'), r"no:handler:\*\*\*"),
            (SECOND.format_map(ports), rf"address is in use .*\(from {path}, line \d+: listener\)"),
            (good + 'deny = "/no/such/list"', "No such file"),
            (
                good.replace('"first"', '"in the way"'),
                rf"settings stay in force: .*in the way.* \(from {path}, line 7: handler\)",
            ),
        ):
            reload(daemon, path, text, says)
            with daemon.smtp() as client:
                assert client.ehlo()[1].startswith(b"one.example")
        path.unlink()
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("cannot read")
        with daemon.smtp() as client:
            deliver(client, "still here")
    assert len(messages(tmp_path / "first")) == 1


def test_settings_that_need_a_restart_are_logged(tmp_path: Path) -> None:
    path = tmp_path / "smtpd-fork.toml"
    text = 'listen = "127.0.0.1:0"\nhandler = "discard"\n'
    path.write_text(text)
    with Daemon("--config", str(path), cwd=tmp_path) as daemon:
        reload(daemon, path, f"{text}pid-file = 'x'\n", "pid_file none -> x needs a restart$")
        daemon.wait_for("configuration reloaded")
        daemon.deliver()


def test_flags_still_override_the_file_after_a_reload(tmp_path: Path) -> None:
    path = tmp_path / "smtpd-fork.toml"
    path.write_text('hostname = "file.example"\nlisten = "127.0.0.1:0"\n')
    options = ("--config", str(path), "--hostname", "flag.example", "--handler", "discard")
    with Daemon(*options, cwd=tmp_path) as daemon:
        reload(daemon, path, 'hostname = "x"\nlisten = "127.0.0.1:0"\n', "configuration reloaded")
        with daemon.smtp() as client:
            assert client.ehlo()[1].startswith(b"flag.example")


def test_relative_paths_of_a_detached_daemon_refer_to_the_directory_of_its_start(
    tmp_path: Path,
) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/deny").write_text("127.0.0.9\n")
    path = tmp_path / "smtpd-fork.toml"
    path.write_text('listen = "127.0.0.1:0"\ndeny = "lists/deny"\n[[handler]]\nuse = "discard"\n')
    with Detached("--config", "smtpd-fork.toml", cwd=tmp_path) as daemon:
        path.write_text(path.read_text().replace('"discard"', '"maildir"\nargument = "here"'))
        os.kill(daemon.pid, signal.SIGHUP)
        wait_until(lambda: "configuration reloaded" in daemon.text, "the reload")
        assert f"reloaded (handler discard -> maildir:{tmp_path}/here)" in daemon.text
        assert "needs a restart" not in daemon.text
        with daemon.smtp() as client:
            deliver(client, "hello")
    assert len(messages(tmp_path / "here")) == 1


@on_both_loops
def test_under_steady_load_no_message_is_lost_and_no_client_refused(
    tmp_path: Path, loop: str
) -> None:
    """smtp-source of Postfix exits at the first connection or message that fails."""
    path = tmp_path / "smtpd-fork.toml"
    address = f"127.0.0.1:{free_ports(1, '127.0.0.1')[0]}"

    def write(folder: str) -> None:
        other = f"127.0.0.2:{free_ports(1, '127.0.0.2')[0]}"
        path.write_text(
            f'loop = "{loop}"\nlisten = ["{address}", "{other}"]\n'
            f'handler = "maildir:{folder}"\n[gate]\nlimit-connections = 100\n'
        )

    folders = ["first", "second", "third", "fourth"]
    write(folders[0])
    with (
        Daemon("--config", str(path), cwd=tmp_path) as daemon,
        subprocess.Popen(
            [peer("smtp-source"), "-s", "10", "-m", "2000", "-l", "1000", "-f", "a@example.com",
             "-t", "b@example.com", f"inet:{address}"],
            stderr=subprocess.PIPE, text=True,
        ) as load,
    ):  # fmt: skip
        for number, folder in enumerate(folders[1:], 1):
            write(folder)
            daemon.signal(signal.SIGHUP)
            wait_until(lambda n=number: daemon.log.count("configuration reloaded") == n, "a reload")  # type: ignore[misc]  # bound now
            wait_until(lambda f=folder: messages(tmp_path / f), "a message after it")  # type: ignore[misc]  # bound now
        assert load.communicate(timeout=PATIENCE)[1] == ""
        assert load.returncode == 0
        assert daemon.stop() == 0
    assert sum(len(messages(tmp_path / folder)) for folder in folders) == 2000
