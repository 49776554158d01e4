"""Debian's qpsmtpd-forkserver and smtpd-fork side by side, on loopback, each with its own files.

qpsmtpd gets most of its behaviour from plugins and a configuration directory. It gets a private
one: ``rcpt_ok`` (a plugin has to accept recipients), ``hosts_allow`` (``-m`` has no effect
without it) and ``queue/maildir``. smtpd-fork gets the same by ``--handler`` and ``--hostname``.

qpsmtpd 0.94 ignores ``-H``, so it looks up every client's name in the DNS, and taint mode keeps it
from using a resolver of the environment. A plugin here replaces the look-up.
"""

from __future__ import annotations

import os
import pwd
import re
import select
import signal
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from support.client import Reply
from support.daemon import COMMAND, PATIENCE, clean_environment, end, until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

HOSTNAME = "mx.example.com"
DOMAIN = "example.com"
USER = "nobody"

LOOPBACK = "127.0.0.1"

PLUGINS = ("no_dns", "hosts_allow", "rcpt_ok")

QUIET_SECONDS = 0.4
"""Seconds to wait for a client that must receive nothing."""

_DEBIANS_PLUGINS = "/usr/share/qpsmtpd/plugins"
_NO_DNS = """\
sub register {
    no warnings 'redefine';
    *Qpsmtpd::TcpServer::tcpenv = sub { return ($_[0], $_[1], 'Unknown') };
}
"""


def as_user() -> tuple[str, ...]:
    """Return the option that both need as root, and that neither needs otherwise."""
    return ("-u", USER) if os.geteuid() == 0 else ()


class Talk:
    """A client with one connection, which sends the given lines and waits for replies."""

    def __init__(self, port: int, host: str = "127.0.0.1", *, source: str | None = None) -> None:
        local = (source, 0) if source else None
        self._socket = socket.create_connection((host, port), PATIENCE, local)
        self._file = self._socket.makefile("rb")

    def reply(self) -> Reply:
        """Return the next reply; code 0 is the end of the connection."""
        lines: list[str] = []
        while True:
            try:
                line = self._file.readline().decode()
            except ConnectionError:
                line = ""
            if not line:
                return Reply(0, lines)
            lines.append(line[4:].rstrip("\r\n"))
            if line[3:4] != "-":
                return Reply(int(line[:3]), lines)

    def say(self, text: str) -> Reply:
        """Send *text* and a line end; return the reply."""
        with suppress(ConnectionError):
            self._socket.sendall(text.encode() + b"\r\n")
        return self.reply()

    def hears(self, seconds: float = QUIET_SECONDS) -> bool:
        """Return whether the server sends anything in that time."""
        return bool(select.select([self._socket], [], [], seconds)[0])

    @property
    def closed(self) -> bool:
        """Return whether the server closes the connection without another reply."""
        return self.reply() == (0, [])

    def leave(self) -> None:
        """Send QUIT, and wait for the end."""
        self.say("QUIT")
        assert self.closed
        self.close()

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def first_of(talks: Sequence[Talk]) -> Talk:
    """Return the first client that receives something."""
    sockets = {talk._socket: talk for talk in talks}
    ready = select.select(list(sockets), [], [], PATIENCE)[0]
    assert ready, "no client received anything"
    return sockets[ready[0]]


class Running:
    """A program in the foreground; a context manager that stops it.

    :ivar process: its process
    """

    def __init__(self, command: list[str], bench: Bench) -> None:
        self._log = bench.folder / "stderr"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=bench.folder,
                env=bench.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        try:
            until(lambda: self._is_ready(bench.ready), "the start")
        except BaseException:
            self.__exit__()
            raise

    def _is_ready(self, pattern: str) -> bool:
        if re.search(pattern, self.log, re.MULTILINE):
            return True
        assert self.process.poll() is None, f"it ended at its start:\n{self.log}"
        return False

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send it a signal, and return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end(self.process)


@dataclass
class Bench:
    """One of the two programs, and a directory that belongs to it and its user.

    :ivar folder: the directory
    :ivar command: the program and its first arguments
    :ivar always: options that replace configuration files of the other program
    :ivar environment: its environment variables
    :ivar ready: the text that it logs when it serves
    """

    folder: Path
    command: list[str]
    always: list[str]
    environment: dict[str, str]
    ready: str

    @property
    def maildir(self) -> Path:
        return self.folder / "Maildir"

    @property
    def pid_file(self) -> Path:
        return self.folder / "pid"

    def serve(self, *options: str, user: Sequence[str] | None = None) -> Running:
        """Start it in the foreground, as the owner of its files."""
        user = as_user() if user is None else user
        return Running([*self.command, *self.always, *user, *options], self)

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run it until it ends: for starts that fail, and for --detach."""
        return subprocess.run(
            [*self.command, *self.always, *options],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def starts(self, *options: str, user: Sequence[str] | None = None) -> bool:
        """Return whether it serves with *options*."""
        try:
            with self.serve(*options, user=user):
                return True
        except AssertionError:
            return False


def make_qpsmtpd(program: str, folder: Path, plugins: Sequence[str] = PLUGINS) -> Bench:
    """Write a private configuration for *program*, which is qpsmtpd-forkserver."""
    _make_own(folder)
    _make_own(folder / "spool", 0o700)
    _write(folder / "plugins" / "no_dns", _NO_DNS)
    config = {
        "logging": "logging/warn LOGINFO",
        "loglevel": "6",
        "me": HOSTNAME,
        "plugin_dirs": f"{_DEBIANS_PLUGINS}\n{folder}/plugins",
        "plugins": "\n".join((*plugins, f"queue/maildir {folder}/Maildir")),
        "rcpthosts": DOMAIN,
        "spool_dir": f"{folder}/spool",
    }
    for name, text in config.items():
        _write(folder / "config" / name, text + "\n")
    environment = clean_environment(QPSMTPD_CONFIG=f"{folder}/config")
    return Bench(folder, [program], [], environment, r"^\d+ Running as user ")


def make_smtpd_fork(folder: Path) -> Bench:
    """Return smtpd-fork, with options for the settings that the other program has in files."""
    _make_own(folder)
    always = ["--handler", f"maildir:{folder}/Maildir", "--hostname", HOSTNAME]
    return Bench(folder, COMMAND, always, clean_environment(), r"serving, pid \d+$")


def _make_own(folder: Path, mode: int = 0o755) -> None:
    folder.mkdir()
    folder.chmod(mode)
    if os.geteuid() == 0:
        account = pwd.getpwnam(USER)
        os.chown(folder, account.pw_uid, account.pw_gid)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o755, exist_ok=True)
    path.parent.chmod(0o755)
    path.write_text(text)
    path.chmod(0o644)


# -- observations of both programs ---------------------------------------------------------------


def at(port: int, host: str = LOOPBACK) -> tuple[str, str]:
    return ("-l", f"{host}:{port}")


def kind(talk: Talk) -> int:
    """Return the first digit of the reply to a client."""
    return talk.reply().code // 100


def greeted(port: int, host: str = LOOPBACK) -> int:
    with Talk(port, host) as talk:
        code = kind(talk)
        if code == 2:
            talk.leave()
        return code


def is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(PATIENCE)
        return sock.connect_ex((LOOPBACK, port)) != 0


def outcome(bench: Bench, *options: str) -> tuple[int, str]:
    """Return the status of a start that fails, and the stream with the error."""
    done = bench.run(*options)
    return done.returncode, "stdout" if done.stdout else "stderr" if done.stderr else "nowhere"


def outcome_or_serving(
    bench: Bench, *options: str, user: Sequence[str] | None = None
) -> tuple[int, str] | str:
    if bench.starts(*options, user=user):
        return "serves"
    return outcome(bench, *options, *(as_user() if user is None else user))
