"""Starts that fail: one line that names the value and where it came from, and nothing left."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import time
import uuid
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from support.daemon import COMMAND, PATIENCE, Daemon, is_alive, run
from support.peers import cannot, needs_root

from smtpd_fork.cli import log
from smtpd_fork.cli.options import OPTIONS, SettingOption
from smtpd_fork.config import DaemonConfig
from smtpd_fork.errors import OperatingSystemError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from support.tls import Certificates

MARK = "MARK_OF_A_TEST"
"""A variable by which a test finds the processes that it is to blame for."""

BROKEN = """
import sys


class Raises:
    def __init__(self):
        raise ValueError("no moon\\ntonight")


class Exits:
    def __init__(self):
        sys.exit(0)
"""


@dataclass(frozen=True)
class Fault:
    """What is wrong, and what is said of it.

    :ivar options: with fields that :class:`Place` fills in
    :ivar status: of exit
    :ivar words: that are in the line: the value, the source, the reason
    """

    options: tuple[str, ...]
    status: int
    words: tuple[str, ...]


class Place:
    """A folder, an address and what else faults are made of; sees what was left there."""

    def __init__(self, folder: Path, certificates: Certificates, taken: int) -> None:
        self.folder = folder
        self.pid_file = folder / "daemon.pid"
        self.socket = folder / "smtp.sock"
        self.mark = uuid.uuid4().hex
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port = free.getsockname()[1]
        (folder / "broken.py").write_text(BROKEN)
        (folder / "file").write_text("a file")
        (folder / "link").symlink_to(folder / "file")
        other, encrypted = folder / "other.pem", folder / "encrypted.pem"
        trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(str(other))
        encrypted.write_bytes(
            load_pem_private_key(certificates.key.read_bytes(), None).private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
            )
        )
        self.fields = {
            "cert": certificates.cert,
            "encrypted": encrypted,
            "folder": folder,
            "key": certificates.key,
            "long": "x" * 120,
            "other": other,
            "port": self.port,
            "taken": taken,
        }

    @property
    def good(self) -> tuple[str, ...]:
        """Options with which nothing is wrong, and each of which could leave something."""
        return (
            *("-l", f"127.0.0.1:{self.port}", "-l", f"unix:{self.socket}"),
            *("--pid-file", str(self.pid_file)),
        )

    def fill(self, texts: tuple[str, ...]) -> list[str]:
        return [text.format_map(self.fields) for text in texts]

    def start(
        self, *options: str, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        handler = () if "--handler" in options else ("--handler", "discard")
        return run(
            *(*self.good, *handler, *options),
            cwd=self.folder,
            environment={**(environment or {}), MARK: self.mark},
        )

    def assert_nothing_left(self) -> None:
        assert not self.pid_file.exists()
        assert not self.socket.exists()
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", self.port))
        assert_no_process(self.mark)


def assert_no_process(mark: str) -> None:
    """See that every process whose environment has *mark* is ended, or just ending."""
    needle = f"{MARK}={mark}".encode()
    deadline = time.monotonic() + PATIENCE
    while left := [pid for pid in processes() if needle in environment_of(pid)]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.01)


def processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and is_alive(int(name))]


def environment_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def only_line(ended: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that was said, and nothing else was."""
    assert ended.stdout == ""
    assert ended.stderr.startswith("smtpd-fork: "), ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.endswith("\n")
    return ended.stderr


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else listens on."""
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        yield other.getsockname()[1]


@pytest.fixture
def place(tmp_path: Path, certificates: Certificates, taken: int) -> Place:
    return Place(tmp_path, certificates, taken)


FAULTS = {
    # -- addresses
    "the port is taken": Fault(
        ("-l", "127.0.0.1:{taken}"),
        os.EX_OSERR,
        ("127.0.0.1:{taken}", "in use", "-l/--listen-address"),
    ),
    "the port of -p is taken": Fault(
        ("-p", "{taken}", "-l", "127.0.0.1"), os.EX_OSERR, ("127.0.0.1:{taken}", "-p/--port")
    ),
    "the port is too high": Fault(("-p", "65536"), os.EX_USAGE, ("'65536'", "-p/--port")),
    "the port is below 0": Fault(("-p", "-1"), os.EX_USAGE, ("'-1'", "-p/--port")),
    "the port is no number": Fault(("-p", "smtp"), os.EX_USAGE, ("'smtp'", "-p/--port")),
    "the second port is wrong": Fault(("-p", "25", "-p", "x"), os.EX_USAGE, ("'x'", "--port")),
    "the address's port is too high": Fault(
        ("-l", "127.0.0.1:65536"), os.EX_USAGE, ("'127.0.0.1:65536'", "-l/--listen-address")
    ),
    "the address is malformed": Fault(
        ("-l", "::1]:25"), os.EX_USAGE, ("'::1]:25'", "-l/--listen-address")
    ),
    "the address is empty": Fault(("-l", ""), os.EX_USAGE, ("''", "-l/--listen-address")),
    "the scheme is unknown": Fault(
        ("-l", "http://127.0.0.1"), os.EX_USAGE, ("'http://127.0.0.1'", "-l/--listen-address")
    ),
    "the host cannot be resolved": Fault(
        ("-l", "no-such-host.invalid:0"),
        os.EX_CONFIG,
        ("no-such-host.invalid:0", "-l/--listen-address"),
    ),
    "the address is no interface's": Fault(
        ("-l", "192.0.2.1:0"), os.EX_OSERR, ("192.0.2.1:0", "no interface", "-l/--listen-address")
    ),
    "the unix socket's folder is not there": Fault(
        ("-l", "unix:{folder}/none/sock"),
        os.EX_CANTCREAT,
        ("unix:{folder}/none/sock", "does not exist", "-l/--listen-address"),
    ),
    "the unix socket's path is a file": Fault(
        ("-l", "unix:{folder}/file"),
        os.EX_CANTCREAT,
        ("unix:{folder}/file", "not a socket", "-l/--listen-address"),
    ),
    "the unix socket's path is too long": Fault(
        ("-l", "unix:{long}"), os.EX_USAGE, ("unix:{long}", "too long", "-l/--listen-address")
    ),
    "smtps without a certificate": Fault(
        ("-l", "smtps:127.0.0.1:0"),
        os.EX_USAGE,
        ("'smtps:127.0.0.1:0'", "no certificate", "-l/--listen-address"),
    ),
    "the backlog is no number": Fault(("--backlog", "all"), os.EX_USAGE, ("'all'", "--backlog")),
    "the socket's mode is not octal": Fault(
        ("--socket-mode", "0999"), os.EX_USAGE, ("'0999'", "--socket-mode")
    ),
    # -- limits
    "-c is below 0": Fault(("-c", "-1"), os.EX_USAGE, ("'-1'", "-c/--limit-connections")),
    "-c is 0": Fault(("-c", "0"), os.EX_USAGE, ("'0'", "-c/--limit-connections")),
    "-c is no number": Fault(("-c", "abc"), os.EX_USAGE, ("'abc'", "-c/--limit-connections")),
    "-m is below 0": Fault(("-m", "-1"), os.EX_USAGE, ("'-1'", "-m/--max-from-ip")),
    "when full is nonsense": Fault(
        ("--when-full", "hide"), os.EX_USAGE, ("'hide'", "defer", "refuse", "--when-full")
    ),
    "the timeout is 0": Fault(("--timeout", "0"), os.EX_USAGE, ("'0'", "--timeout")),
    "the time for a message is 0": Fault(
        ("--data-timeout", "0"), os.EX_USAGE, ("'0'", "--data-timeout")
    ),
    "the handler's time is no time": Fault(
        ("--handler-timeout", "never"), os.EX_USAGE, ("'never'", "--handler-timeout")
    ),
    "the session's time is more than a week": Fault(
        ("--session-timeout", "169h"), os.EX_USAGE, ("'169h'", "--session-timeout")
    ),
    "the rate is below 0": Fault(
        ("--min-data-rate", "-1"), os.EX_USAGE, ("'-1'", "--min-data-rate")
    ),
    "the errors are below 0": Fault(("--max-errors", "-1"), os.EX_USAGE, ("'-1'", "--max-errors")),
    "no recipients are allowed": Fault(
        ("--max-recipients", "0"), os.EX_USAGE, ("'0'", "--max-recipients")
    ),
    "the size of all messages is no size": Fault(
        ("--max-buffered", "half"), os.EX_USAGE, ("'half'", "--max-buffered")
    ),
    "the size is no size": Fault(
        ("--max-message-size", "5 apples"), os.EX_USAGE, ("'5 apples'", "--max-message-size")
    ),
    "the size's unit only looks like one": Fault(
        ("--max-message-size", "5\N{KELVIN SIGN}"), os.EX_USAGE, ("--max-message-size",)
    ),
    # -- the process
    "the pid-file's folder is not there": Fault(
        ("--pid-file", "none/daemon.pid"),
        os.EX_CANTCREAT,
        ("{folder}/none/daemon.pid", "No such file or directory", "--pid-file"),
    ),
    "the pid-file is a folder": Fault(
        ("--pid-file", "{folder}"), os.EX_CANTCREAT, ("{folder}", "Is a directory", "--pid-file")
    ),
    "the pid-file is a symbolic link": Fault(
        ("--pid-file", "link"), os.EX_CANTCREAT, ("{folder}/link", "symbolic link", "--pid-file")
    ),
    "the user is unknown": Fault(
        ("-u", "no-such-user"), os.EX_NOUSER, ("'no-such-user'", "-u/--user")
    ),
    "the uid is unknown": Fault(("-u", "4000000000"), os.EX_NOUSER, ("'4000000000'", "-u/--user")),
    "the loop is unknown": Fault(
        ("--loop", "trio"), os.EX_USAGE, ("'trio'", "uvloop, asyncio", "--loop")
    ),
    "the log's folder is not there": Fault(
        ("--log-to", "none/log"), os.EX_CANTCREAT, ("{folder}/none/log", "--log-to")
    ),
    "the log is a folder": Fault(
        ("--log-to", "{folder}"), os.EX_CANTCREAT, ("{folder}", "Is a directory", "--log-to")
    ),
    "the log level is unknown": Fault(
        ("--log-level", "loud"),
        os.EX_USAGE,
        ("'loud'", "debug, info, warning, error", "--log-level"),
    ),
    # -- mail
    "the handler's name is unknown": Fault(
        ("--handler", "nosuch"), os.EX_CONFIG, ("'nosuch'", "--handler")
    ),
    "the handler cannot be imported": Fault(
        ("--handler", "no_such_module:x"),
        os.EX_CONFIG,
        ("'no_such_module:x'", "ModuleNotFoundError", "--handler"),
    ),
    "the handler's constructor raises": Fault(
        ("--handler", "broken:Raises"),
        os.EX_CONFIG,
        ("'broken:Raises'", "ValueError: no moon tonight", "--handler"),
    ),
    "the handler's constructor exits": Fault(
        ("--handler", "broken:Exits"), os.EX_CONFIG, ("'broken:Exits'", "--handler")
    ),
    "the Maildir cannot be made": Fault(
        ("--handler", "maildir:{folder}/file/Maildir"),
        os.EX_CANTCREAT,
        ("{folder}/file/Maildir", "Not a directory", "--handler"),
    ),
    "the Maildir is in the home of nobody": Fault(
        ("--handler", "maildir:~no-such-user/Maildir"),
        os.EX_CONFIG,
        ("~no-such-user/Maildir", "--handler"),
    ),
    "what becomes of a bare LF is nonsense": Fault(
        ("--bare-newline", "keep"),
        os.EX_USAGE,
        ("'keep'", "reject", "normalize", "accept", "--bare-newline"),
    ),
    "the hostname has a space": Fault(
        ("--hostname", "mx example"), os.EX_USAGE, ("'mx example'", "--hostname")
    ),
    # -- TLS
    "the certificate is not there": Fault(
        ("--tls-cert", "no.pem"),
        os.EX_CONFIG,
        ("no.pem", "No such file or directory", "--tls-cert"),
    ),
    "the certificate is none": Fault(
        ("--tls-cert", "{folder}/file", "--tls-key", "{key}"),
        os.EX_CONFIG,
        ("{folder}/file", "--tls-cert"),
    ),
    "the key is not there": Fault(
        ("--tls-cert", "{cert}", "--tls-key", "no.pem"),
        os.EX_CONFIG,
        ("no.pem", "No such file or directory", "--tls-key"),
    ),
    "the key is another certificate's": Fault(
        ("--tls-cert", "{cert}", "--tls-key", "{other}"),
        os.EX_CONFIG,
        ("{other}", "--tls-cert", "--tls-key"),
    ),
    "the key is encrypted": Fault(
        ("--tls-cert", "{cert}", "--tls-key", "{encrypted}"),
        os.EX_CONFIG,
        ("{encrypted}", "encrypted", "--tls-key"),
    ),
    "a key without a certificate": Fault(
        ("--tls-key", "{key}"), os.EX_USAGE, ("{key}", "--tls-key")
    ),
    "TLS is required and cannot be had": Fault(
        ("--require-starttls",), os.EX_USAGE, ("--require-starttls",)
    ),
    # -- the command line
    "the option is unknown": Fault(("--lisen", "x"), os.EX_USAGE, ("--lisen",)),
    "the option's value is missing": Fault(("-p",), os.EX_USAGE, ("-p",)),
    "there is a word too many": Fault(("discard",), os.EX_USAGE, ("discard",)),
    # -- two at once
    "a handler that never sees a message, and then a fault": Fault(
        ("--handler", "discard", "--handler", "debug", "--tls-cert", "no.pem"),
        os.EX_CONFIG,
        ("no.pem", "--tls-cert"),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_start_that_fails_says_why_in_one_line_and_leaves_nothing(
    name: str, place: Place
) -> None:
    fault = FAULTS[name]
    ended = place.start(*place.fill(fault.options))
    line = only_line(ended)
    assert ended.returncode == fault.status
    for word in place.fill(fault.words):
        assert word in line
    place.assert_nothing_left()


DETACHED = (
    "the port is taken",
    "the port is too high",
    "the pid-file's folder is not there",
    "the user is unknown",
    "the handler's constructor raises",
    "the Maildir cannot be made",
    "the key is encrypted",
    "the log's folder is not there",
    "the option is unknown",
)


@pytest.mark.parametrize("name", DETACHED)
def test_with_detach_the_parent_says_the_same_with_the_same_status(name: str, place: Place) -> None:
    options = place.fill(FAULTS[name].options)
    in_front = place.start(*options)
    detached = place.start("--detach", *options)
    assert detached.returncode == in_front.returncode == FAULTS[name].status
    assert only_line(detached) == only_line(in_front)
    place.assert_nothing_left()


@pytest.mark.parametrize("stream", ["stderr", "stdout"])
def test_a_detached_daemon_cannot_log_to_a_terminal(place: Place, stream: str) -> None:
    ended = place.start("--detach", "--log-to", stream)
    assert ended.returncode == os.EX_CONFIG
    assert stream in only_line(ended)
    assert "--log-to" in ended.stderr
    place.assert_nothing_left()


@pytest.mark.parametrize("detach", [(), ("--detach",)], ids=["in front", "detached"])
def test_a_pid_file_that_cannot_be_written_to_is_a_fault_of_the_start(
    place: Place, detach: tuple[str, ...]
) -> None:
    """It can be opened and locked before the detaching; the disk is full only afterwards."""
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
def test_a_current_folder_that_was_removed_is_one_line(
    place: Place, detach: tuple[str, ...]
) -> None:
    """The Maildir's path is relative to it, so there is nothing that it could mean."""
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


def test_a_syslog_that_is_not_there_is_a_fault_if_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "SYSLOG", str(tmp_path / "log"))
    with pytest.raises(OperatingSystemError, match=str(tmp_path)):
        log._handler(DaemonConfig.build({"log_to": "syslog"}))


def test_a_syslog_that_is_not_there_is_done_without_if_it_was_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a container, where nobody listens: no traceback for each line that is logged."""
    monkeypatch.setattr(log, "SYSLOG", str(tmp_path / "log"))
    handler = log._handler(DaemonConfig.build({"detach": True}))
    handler.handle(logging.makeLogRecord({"msg": "hello"}))
    handler.close()
    assert capsys.readouterr() == ("", "")


def test_a_fault_leaves_a_socket_where_somebody_answers(place: Place) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(place.socket))
        other.listen()
        ended = place.start()
        assert ended.returncode == os.EX_OSERR
        assert f"unix:{place.socket}" in only_line(ended)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(place.socket))
    assert not place.pid_file.exists()


def test_a_fault_leaves_the_file_that_a_symbolic_link_leads_to(place: Place) -> None:
    place.start("--pid-file", "link")
    assert (place.folder / "file").read_text() == "a file"
    assert (place.folder / "link").is_symlink()


def test_a_fault_leaves_the_pid_file_of_whoever_runs(place: Place) -> None:
    with Daemon(
        "-l", "127.0.0.1:0", "--handler", "discard", "--pid-file", "daemon.pid", cwd=place.folder
    ) as daemon:
        ended = place.start()
        assert ended.returncode == os.EX_CANTCREAT
        assert f"{place.pid_file}: a running process holds it (pid {daemon.process.pid})" in (
            only_line(ended)
        )
        assert "--pid-file" in ended.stderr
        assert place.pid_file.read_text() == f"{daemon.process.pid}\n"
        assert not place.socket.exists()


def test_a_start_after_a_fault_is_none_the_worse(place: Place) -> None:
    place.start("--handler", "nosuch")
    with Daemon(*place.good, "--handler", "discard", cwd=place.folder) as daemon:
        daemon.deliver()
        assert daemon.stop() == 0
    place.assert_nothing_left()


# -- the environment ---------------------------------------------------------------------------

BAD_WORDS = {
    "port": "65536",
    "listen": "127.0.0.1:x",
    "backlog": "all",
    "socket_mode": "0999",
    "limit_connections": "none",
    "max_from_ip": "-1",
    "when_full": "hide",
    "timeout": "soon",
    "tls_handshake_timeout": "0",
    "data_timeout": "0",
    "min_data_rate": "-1",
    "handler_timeout": "never",
    "session_timeout": "169h",
    "max_errors": "-1",
    "max_recipients": "0",
    "max_buffered": "half",
    "bare_newline": "keep",
    "max_message_size": "big",
    "handler": "nosuch",
    "hostname": "two words",
    "tls_cert": "no.pem",
    "tls_key": "no.pem",
    "require_starttls": "perhaps",
    "user": "no-such-user",
    "detach": "perhaps",
    "pid_file": "none/daemon.pid",
    "shutdown_timeout": "-1",
    "loop": "trio",
    "log_level": "loud",
    "log_to": "none/log",
}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_a_variable_that_is_to_blame_is_named(option: SettingOption, tmp_path: Path) -> None:
    word = BAD_WORDS[str(option.name)]
    harmless = {"SMTPD_FORK_LISTEN_ADDRESS": "127.0.0.1:0", "SMTPD_FORK_HANDLER": "discard"}
    ended = run(cwd=tmp_path, environment={**harmless, str(option.envvar): word})
    line = only_line(ended)
    assert ended.returncode in {os.EX_USAGE, os.EX_CONFIG, os.EX_NOUSER, os.EX_CANTCREAT}
    assert word in line
    assert str(option.envvar) in line


def test_a_flag_that_is_to_blame_is_named_and_the_variable_that_it_beats_is_not(
    place: Place,
) -> None:
    ended = place.start("-c", "abc", environment={"SMTPD_FORK_LIMIT_CONNECTIONS": "5"})
    assert "-c/--limit-connections" in only_line(ended)
    assert "SMTPD_FORK" not in ended.stderr


def test_a_default_that_is_to_blame_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "Maildir").write_text("a file")
    ended = run("-l", "127.0.0.1:0", cwd=tmp_path)
    assert ended.returncode == os.EX_CANTCREAT
    assert f"{tmp_path}/Maildir" in only_line(ended)
    assert "by default" in ended.stderr


# -- without root ------------------------------------------------------------------------------


@pytest.fixture
def public(command_for_nobody: list[str]) -> Iterator[Path]:
    """A folder that the user nobody can enter and not write to."""
    folder = Path(tempfile.mkdtemp(prefix="smtpd-fork-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("detach", [(), ("--detach",)], ids=["in front", "detached"])
def test_a_privileged_port_takes_privileges(
    detach: tuple[str, ...], command_for_nobody: list[str], public: Path
) -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first <= 1:
        cannot("no port takes privileges on this system")
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
def test_what_a_plain_user_may_not_do_is_one_line(
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


@pytest.mark.parametrize("detach", [(), ("--detach",)], ids=["in front", "detached"])
def test_what_the_user_of_u_may_not_do_leaves_nothing_of_roots(
    detach: tuple[str, ...], command_for_nobody: list[str], public: Path
) -> None:
    """Root made the pid-file and the socket, and is gone when the Maildir cannot be made."""
    mark = uuid.uuid4().hex
    ended = run(
        *("-l", "127.0.0.1:0", "-l", "unix:smtp.sock", "--pid-file", "daemon.pid", "-u", "nobody"),
        *("--handler", "maildir:Maildir", *detach),
        cwd=public,
        command=command_for_nobody,
        environment={MARK: mark},
    )
    assert ended.returncode == os.EX_CANTCREAT
    assert f"{public}/Maildir: Permission denied" in only_line(ended)
    assert "--handler" in ended.stderr
    assert list(public.iterdir()) == []
    assert_no_process(mark)


def test_root_is_no_user_to_drop_privileges_to(place: Place) -> None:
    needs_root()
    ended = place.start("-u", "root")
    assert ended.returncode == os.EX_NOPERM
    assert "'root'" in only_line(ended)
    assert "-u/--user" in ended.stderr
    place.assert_nothing_left()
