"""``check`` and ``config``: errors of a start, and effective settings, without a start."""

from __future__ import annotations

import os
import socket
import tomllib
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from support.daemon import Daemon, run

from smtpd_fork.cli.config_file import read_config_file
from smtpd_fork.config import DaemonConfig

if TYPE_CHECKING:
    from pathlib import Path

    from support.tls import Certificates


def test_a_valid_configuration_passes_and_leaves_no_files(
    tmp_path: Path, certificates: Certificates
) -> None:
    ended = run(
        *("check", "-l", "127.0.0.1:0", "-l", "unix:smtp.sock", "--pid-file", "pid"),
        *("--tls-cert", str(certificates.cert), "--tls-key", str(certificates.key)),
        *("--log-to", "log", "--handler", "maildir:mail"),
        cwd=tmp_path,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "configuration OK\n", "")
    assert list(tmp_path.iterdir()) == []


def test_each_error_is_one_line(tmp_path: Path, certificates: Certificates) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        ended = run(
            *("check", "-l", f"127.0.0.1:{port}", "--handler", "nothing:here", "-u", "nobdy"),
            *("--tls-cert", str(certificates.cert), "--tls-key", str(tmp_path / "none")),
            *("--deny", "192.0.2.300", "--log-to", str(tmp_path), "--pid-file", "no/such/pid"),
            cwd=tmp_path,
        )
    told = ended.stderr.splitlines()
    assert all(line.startswith("smtpd-fork: ") for line in told)
    wanted = {
        "--deny": "192.0.2.300", "--handler": "nothing", "-u/--user": "nobdy",
        "--listen-address": f"127.0.0.1:{port}", "--pid-file": "no/such/pid",
        "--log-to": str(tmp_path),
    }  # fmt: skip
    for flag, value in wanted.items():
        assert [line for line in told if flag in line and value in line], (flag, told)
    assert ended.returncode == os.EX_NOUSER  # the first one's: --user
    assert ended.stdout == ""


def test_keys_are_tried_on_their_certificates(tmp_path: Path, certificates: Certificates) -> None:
    ended = run(
        *("check", "-l", "127.0.0.1:0", "--tls-cert", str(certificates.cert)),
        *("--tls-key", str(certificates.cert)),
        cwd=tmp_path,
    )
    assert ended.returncode == os.EX_CONFIG
    assert "--tls-cert" in ended.stderr


@pytest.mark.parametrize("subcommand", ["check", "config"])
def test_an_error_in_the_file_is_one_line(tmp_path: Path, subcommand: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text("[gate]\nrate = 5\nreserve = 3\n")
    ended = run(subcommand, "--config", str(path), cwd=tmp_path)
    assert ended.returncode == os.EX_CONFIG
    assert len(ended.stderr.splitlines()) == 1
    assert f"{path}, line 2: gate.rate 5" in ended.stderr


def test_an_address_in_use_is_an_error_except_with_running(tmp_path: Path) -> None:
    with Daemon("-l", "127.0.0.1:0", "--handler", "discard", cwd=tmp_path) as daemon:
        same = ("-l", f"127.0.0.1:{daemon.port}", "--handler", "discard")
        ended = run("check", *same, cwd=tmp_path)
        assert ended.returncode == os.EX_OSERR
        assert "the address is in use" in ended.stderr
        ended = run("check", "--running", *same, cwd=tmp_path)
        assert (ended.returncode, ended.stdout) == (0, "configuration OK\n")
        daemon.deliver()


def test_a_pid_file_without_a_process_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "pid").write_text("1\n")
    ended = run("check", "-l", "127.0.0.1:0", "--pid-file", "pid", cwd=tmp_path)
    assert ended.returncode == 0
    assert (tmp_path / "pid").read_text() == "1\n"


def test_the_output_of_config_is_an_equivalent_file(tmp_path: Path) -> None:
    flags = (
        *("-p", "25", "-p", "587", "-l", 'unix:a"b\\c', "--rate", "5/m", "--rate", "9/h"),
        *("--when-full", "defer:2.5", "--max-message-size", "25M", "--greet-pause", "500ms"),
        *("--socket-mode", "0600", "--hostname", "mx", "--rdns", "--exempt", "192.0.2.0/24"),
        *("--reserve", "3", "--handler", "maildir:/Größe\t,\x7f"),
    )  # fmt: skip
    first = run("config", *flags, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    path = tmp_path / "printed.toml"
    path.write_text(first.stdout)
    second = run("config", "--config", str(path), cwd=tmp_path)
    assert second.returncode == 0, second.stderr

    def said(text: str) -> list[str]:
        return [line.partition("  # ")[0] for line in text.splitlines()[1:]]

    assert said(first.stdout) == said(second.stdout)
    config = DaemonConfig.build(read_config_file(path).values)
    assert (config.port, config.rate, config.greet_pause) == ((25, 587), ("5/m", "9/h"), 0.5)
    assert config.handler == ("maildir:/Größe\t,\x7f",)


def test_config_hides_secrets(tmp_path: Path) -> None:
    ended = run("config", "--handler", "shop:Orders:redis://me:s3cret@db/1", cwd=tmp_path)
    assert "s3cret" not in ended.stdout
    assert 'handler = ["shop:Orders:***"]' in ended.stdout


def test_config_hides_the_secret_of_a_handler_and_is_toml_still(tmp_path: Path) -> None:
    handler = "webhook:http://u:s3cret@127.0.0.1/,secret=s3cret"
    ended = run("config", "--handler", handler, "--hostname", "password=s3cret", cwd=tmp_path)
    assert "s3cret" not in ended.stdout
    said = tomllib.loads(ended.stdout)
    assert said["handler"] == ["webhook:http://u:***@127.0.0.1/,secret=***"]
    assert said["hostname"] == "password=***"


@pytest.mark.parametrize("subcommand", ["check", "config"])
def test_a_subcommand_has_help_with_all_options(tmp_path: Path, subcommand: str) -> None:
    ended = run(subcommand, "--help", cwd=tmp_path, environment={"COLUMNS": "200"})
    assert ended.returncode == 0
    assert ended.stdout.startswith(f"Usage: smtpd-fork {subcommand} ")
    assert "--max-from-ip" in ended.stdout
    assert max(map(len, ended.stdout.splitlines())) <= 80


def test_a_warning_of_a_handler_is_a_line_like_the_other_warnings(tmp_path: Path) -> None:
    (tmp_path / "users").write_text("bob:secret\n")
    (tmp_path / "users").chmod(0o644)
    handlers = ("auth:users", "milter:unix:/nowhere", "discard")
    options = [word for handler in handlers for word in ("--handler", handler)]
    ended = run("check", "-l", "127.0.0.1:0", *options, cwd=tmp_path)
    *warnings, last = ended.stdout.splitlines()
    assert [line.partition(": ")[0] for line in warnings] == ["warning"] * 3
    assert "all users of the system may read it" in warnings[0]
    assert warnings[2].startswith("warning: milter unix:/nowhere is not available: ")
    assert (last, ended.stderr) == ("configuration OK", "")
