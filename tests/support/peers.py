"""Requirements of tests on the machine: programs, root, IPv6, namespaces, /proc.

A test requires each here before it uses it. If one is missing, the test is skipped with that
reason, or fails with CI=true; at the end of a run conftest.py lists the missing ones.
"""

from __future__ import annotations

import os
import pty
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

IN_CI = os.environ.get("CI") == "true"

_PLACES = ("/usr/sbin", "/sbin", "/usr/lib/postfix/sbin", "/usr/lib/systemd", "/lib/systemd")

_EVERYWHERE = {"cp", "env", "false", "sh", "sleep", "true"}
"""Programs of POSIX, which tests may use without a check."""

_INSTALLED = ("/bin/", "/lib/", "/opt/", "/sbin/", "/usr/")
"""Directories of programs."""

_SEPARATOR = "; "
"""Separator of the requirements that one test lacks."""

_asked_for: set[str] = set()


def peer(program: str) -> str:
    """Return the path of *program*; without it skip the test, or fail it."""
    return peers(program)[0]


def peers(*programs: str) -> list[str]:
    """Return the paths of all of *programs*."""
    found = [_find(program) for program in programs]
    absent = [program for program, path in zip(programs, found, strict=True) if path is None]
    if absent:
        cannot(*(f"{program} is not installed" for program in absent))
    return [str(path) for path in found]


def _find(program: str) -> str | None:
    path = shutil.which(program, path=os.pathsep.join([os.environ["PATH"], *_PLACES]))
    if path not in _asked_for:
        # pytest.skip() has to be called in the test's own thread.
        in_test = threading.current_thread() is threading.main_thread()
        assert in_test, f"a test must check {program} before it starts a thread that does"
    if path is not None:
        _asked_for.add(path)
    return path


UNPACKED = Path("/opt/peers")
"""Directory of the packages that .ci/run unpacks, as they conflict with each other (the MTAs)."""


def unpacked(path: str, *, package: str) -> Path:
    """Return a program of a Debian package that was unpacked, not installed."""
    program = UNPACKED / path
    if not program.exists():
        cannot(f"{package} is not unpacked in {UNPACKED} (as .ci/run does it)")
    _asked_for.add(str(program))
    return program


def npm_package(name: str, version: str) -> Path:
    """Return the directory of an npm package, which is installed into a cache."""
    peer("node")
    store = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smtpd-fork-tests"
    package = store / f"{name}-{version}" / "node_modules" / name
    if not (package / "package.json").is_file():
        quiet = ("--no-audit", "--no-fund", "--no-save", "--ignore-scripts", "--loglevel=error")
        store.mkdir(parents=True, exist_ok=True)
        # Tests may do this concurrently: each installs its own copy, and the first copy is kept.
        folder = tempfile.mkdtemp(dir=store)
        command = [peer("npm"), "install", "--prefix", folder, *quiet, f"{name}@{version}"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        if ended.returncode:
            cannot(f"npm cannot install {name} {version}: {ended.stderr[-500:]}")
        with suppress(OSError):
            Path(folder).rename(package.parents[1])
        shutil.rmtree(folder, ignore_errors=True)
    return package


def cannot(*reasons: str) -> NoReturn:
    """Skip the test for *reasons*; in CI, where nothing is missing, fail it."""
    if IN_CI:
        pytest.fail(f"missing in CI: {_SEPARATOR.join(reasons)}")
    pytest.skip(_SEPARATOR.join(reasons))


def needs_root() -> None:
    if os.geteuid() != 0:
        cannot("not run as root")


def needs_ipv6_for(addresses: Iterable[object]) -> None:
    """Require IPv6 if one of *addresses*, or of a command's words, is an IPv6 address."""
    if any(re.search(r"::1?(\]|$)", str(address)) for address in addresses):
        needs_ipv6()


def needs_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        cannot("no IPv6 on loopback")


def needs_terminals() -> None:
    try:
        for descriptor in pty.openpty():
            os.close(descriptor)
    except OSError:
        cannot("no pseudo-terminals")


def proc(*names: object) -> Path:
    """Return a path below /proc (proc(5)): of a process, or of the system."""
    if not Path("/proc/self/stat").exists():
        cannot("/proc is not mounted")
    return Path("/proc", *map(str, names))


def namespaces(*options: str) -> list[str]:
    """Return the command that runs another in its own namespaces: unshare(1) with *options*.

    In a container or a chroot the program may exist without the permission or the mount points.
    """
    needs_root()
    command = [peer("unshare"), *options]
    if not _works(*command, "true"):
        cannot("no namespaces")
    return command


@cache
def _works(*command: str) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


SYSTEM_PYTHON = Path("/usr/bin/python3")


def table(reasons: Iterable[str]) -> list[str]:
    """Return lines that list the missing requirements, each with the number of skipped tests.

    :param reasons: of the skipped tests, in the format of :func:`cannot`
    """
    count = Counter(
        one for reason in reasons for one in reason.removeprefix("Skipped: ").split(_SEPARATOR)
    )
    rows = sorted(count.items(), key=lambda row: (-row[1], row[0]))
    return [f"{number:5}  {reason}" for reason, number in rows]


def watch_programs() -> None:
    """From now on, raise an error for every program that a test starts without a check."""
    sys.addaudithook(_see_program)


def _see_program(event: str, arguments: tuple[object, ...]) -> None:
    if event != "subprocess.Popen" or "PYTEST_CURRENT_TEST" not in os.environ:
        return
    program = os.fsdecode(arguments[0])  # type: ignore[arg-type]  # as subprocess raises it
    name = Path(program).name
    if program in _asked_for or name in _EVERYWHERE or name.startswith(("python", "smtpd-fork")):
        return
    if Path(program).is_absolute() and not program.startswith(_INSTALLED):
        return  # The test has created the program itself.
    raise AssertionError(f"a test starts {program} without a check by support.peers")
