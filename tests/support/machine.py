"""An isolated machine for one page: a shell in its own namespaces (unshare(1)).

It has a loopback interface, a host name, its own processes, and copies of the directories that a
page may write to. Its commands change nothing outside, and no traffic leaves it. It needs root.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from support.daemon import PATIENCE, clean_environment
from support.installation import ROOT
from support.peers import namespaces, peers
from support.transcript import is_as_shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from support.transcript import Command

NAME = "mx.example.com"

LONGEST_COMMAND = 60.0
"""Seconds; a command that takes longer is assumed to hang."""

MOMENT = 0.05
"""Seconds between two attempts to see the same output."""

_COPIED = ("/etc", "/var/mail", "/var/spool/postfix", "/var/lib/postfix")

OF_CLONE = ("Makefile", "pyproject.toml", "examples", "packaging")

_HOSTS = f"127.0.0.1 {NAME} mx localhost\n::1 localhost\n"

_ALONE = ("--net", "--uts")
_OWN = ("--mount", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc")
"""Options of unshare(1): for the network and the host name, and for everything else."""

_SET_UP = f"ip link set lo up && hostname {NAME} && "

_MOUNT = """
for folder in "$1"/copies/*; do
    mount --bind "$folder" "/$(basename "$folder" | tr : /)" || exit
done
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /var/log
cd /srv
"""

_SHELL = """
while IFS= read -r -u "$2" -d '' command; do
    (exit "${status:-0}")
    eval "$command"
    status=$?
    printf '\\036%d\\036' "$status"
done
"""
"""Commands come on a separate descriptor: standard input is /dev/null, as programs may read it."""

_END = re.compile("\036(\\d+)\036")


class PageError(AssertionError):
    """The output or status of a command differs from the page."""


class Machine:
    """A shell in its own namespaces; a context manager that ends all that was started there.

    :param folder: an empty one
    :param path: directories that are searched first for programs
    :param of_clone: files that a clone of the project has, for the page's directory
    :ivar here: the page's directory, which is /srv there
    """

    def __init__(
        self, folder: Path, path: Sequence[Path] = (), *, of_clone: Sequence[str] = OF_CLONE
    ) -> None:
        peers("ip", "hostname", "bash", "mount")
        self._enter = namespaces(*_ALONE, *_OWN)
        self._folder = folder
        folder.chmod(0o755)
        for name in _COPIED:
            if Path(name).exists():
                copy = self._copy_of(name)
                copy.parent.mkdir(exist_ok=True)
                subprocess.run(["cp", "-a", name, copy], check=True)
        (self._copy_of("/etc") / "hosts").write_text(_HOSTS)
        _deliver_without_procmail(self._copy_of("/etc") / "postfix/main.cf")
        self.here = self._copy_of("/srv")
        self.here.mkdir()
        for name in of_clone:
            _copy(ROOT / name, self.here / name)
        _set_up_environment(self.here / ".venv", path)
        # No variable of the process that runs the tests: neither its options nor flags of make.
        self._environment = {
            "PATH": os.pathsep.join([*map(str, path), os.environ["PATH"], "/usr/sbin", "/sbin"]),
            "HOME": "/srv",
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "TZ": "UTC",
            "COLUMNS": "100",
        }
        self._printed = ""
        self._has_background = False

    def _copy_of(self, name: str) -> Path:
        return self._folder / "copies" / name.strip("/").replace("/", ":")

    def write(self, name: str, text: str) -> None:
        """Write a file of a page: in its directory, or below /etc."""
        path = Path(name)
        if path.is_absolute():
            assert path.parts[1] == "etc", f"{name}: a file is in the page's folder or below /etc"
            path = path.relative_to("/etc")
        path = self._copy_of("/etc" if name.startswith("/") else "/srv") / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def __enter__(self) -> Self:
        commands, self._commands = os.pipe()
        self._shell = subprocess.Popen(
            [
                *self._enter,
                "bash", "--norc", "-c", _SET_UP + "true || exit" + _MOUNT + _SHELL,
                "bash", str(self._folder), str(commands),
            ],
            env=self._environment, pass_fds=[commands],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        os.close(commands)
        return self

    def __exit__(self, *_: object) -> None:
        # The shell is process 1 of the namespace: when it ends, the kernel ends all others.
        os.close(self._commands)
        try:
            self._shell.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._shell.kill()
            self._shell.wait()
        assert self._shell.stdout is not None
        self._shell.stdout.close()

    def run(self, command: Command) -> None:
        """Run a command of a page, and compare its output.

        Background processes may print after the command has ended, so this method waits for their
        output. A command that only reads is repeated: a daemon writes its log a moment after its
        answer. A command without output on the page has to print nothing and to succeed; one with
        output has to print it.

        :raises PageError: the output or the status differs from the page
        """
        self._has_background |= command.is_background
        try:
            status = self._compare(command)
            if status != 0 and not command.shown.replace("...", "").strip():
                why = f"it fails, with status {status}, and the page does not show why"
                raise PageError(_complaint(command, self._output, why))
        finally:
            self._printed = ""

    def _compare(self, command: Command) -> int:
        deadline = time.monotonic() + PATIENCE
        status = self._ask(command)
        while not is_as_shown(self._output, command.shown):
            if command.only_looks and time.monotonic() < deadline:
                if not self._read(time.monotonic() + MOMENT):
                    self._printed = ""
                    status = self._ask(command)
            elif not (self._has_background and self._read(deadline)):
                raise PageError(_complaint(command, self._output, "it is not as the page shows it"))
        return status

    @property
    def _output(self) -> str:
        return _END.sub("", self._printed)

    def _ask(self, command: Command) -> int:
        """Run a command in the shell until it ends; return its status."""
        os.write(self._commands, command.text.encode() + b"\0")
        deadline = time.monotonic() + LONGEST_COMMAND
        while (end := _END.search(self._printed)) is None:
            if not self._read(deadline):
                raise PageError(_complaint(command, self._printed, "it does not end"))
        return int(end[1])

    def _read(self, deadline: float) -> bool:
        """Wait for more output until *deadline*; return whether there is some."""
        assert self._shell.stdout is not None
        left = max(0.0, deadline - time.monotonic())
        if not select.select([self._shell.stdout], [], [], left)[0]:
            return False
        data = os.read(self._shell.stdout.fileno(), 1 << 16)
        self._printed += data.decode(errors="replace")
        return bool(data)


def _complaint(command: Command, printed: str, why: str) -> str:
    return (
        f"line {command.line}: {why}\n"
        f"--- command\n{command.text}\n"
        f"--- the page shows\n{command.shown}\n"
        f"--- it prints\n{printed.strip()}\n---"
    )


def _deliver_without_procmail(main_cf: Path) -> None:
    """Let Postfix deliver by itself: Debian's default is procmail if that is installed."""
    if main_cf.exists():
        text = main_cf.read_text()
        main_cf.write_text(re.sub(r"(?m)^mailbox_command\b.*\n", "", text))


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    elif source.exists():
        shutil.copy2(source, target)


def _set_up_environment(folder: Path, path: Sequence[Path]) -> None:
    """Let ``make`` find an environment that is set up, and empty, so that it changes nothing."""
    (folder / "bin").mkdir(parents=True)
    for programs in path:
        if (command := programs / "smtpd-fork").exists():
            (folder / "bin/smtpd-fork").symlink_to(command)
    (folder / ".installed").touch()


def run_alone(
    *command: str, cwd: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a command until it ends, in its own network namespace."""
    peers("ip", "hostname", "bash")
    return subprocess.run(
        [*namespaces(*_ALONE), "bash", "-c", _SET_UP + 'exec "$@"', "bash", *command],
        cwd=cwd,
        env=clean_environment(**environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LONGEST_COMMAND,
        check=False,
    )
