"""The files under packaging/: the wheel installs them, systemd accepts them, the daemon runs so.

No systemd runs here (tests/deb/run starts one). Its analyzer checks the files. The settings that
could hinder the daemon (the filter of system calls, no executable memory, no capabilities) are
applied to a daemon as systemd would do it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml
from support.daemon import COMMAND, LOCAL, Daemon, Process, messages, on_both_loops, until
from support.installation import ROOT
from support.peers import SYSTEM_PYTHON, cannot, needs_root, peer

from smtpd_fork import __version__
from smtpd_fork.cli.options import OPTIONS
from smtpd_fork.errors import ExitStatus
from smtpd_fork.listeners.address import PROTOCOLS

PACKAGING = ROOT / "packaging"
SERVICE, SOCKET = PACKAGING / "smtpd-fork.service", PACKAGING / "smtpd-fork.socket"
TEMPLATE, TARGET = PACKAGING / "smtpd-fork@.service", PACKAGING / "smtpd-fork.target"

MOST_EXPOSURE = 2.0

CONFINE = """
import ctypes, os, sys

import seccomp

NO_NEW_PRIVS, MDWE = 38, 65
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) == 0
if libc.prctl(MDWE, 1, 0, 0, 0):
    print("this kernel has no PR_SET_MDWE", file=sys.stderr)
calls, command = sys.argv[1], sys.argv[2:]
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
filter = seccomp.SyscallFilter(seccomp.ERRNO(1))
for name in open(calls).read().split():
    try:
        filter.add_rule(seccomp.ALLOW, name)
    except (OSError, RuntimeError):
        pass  # this machine's processor, or its library, does not know it
filter.load()
os.execv(command[0], command)
"""


def settings(path: Path) -> dict[str, list[str]]:
    """Return a unit file's settings, each with all its values."""
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def analyze(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [peer("systemd-analyze"), "--no-pager", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "files",
    [
        (SERVICE, SOCKET),
        (SERVICE,),
        (SOCKET,),
        (TEMPLATE.with_stem("smtpd-fork@1"), TARGET, SOCKET),
    ],
)
def test_systemd_accepts_the_files_without_a_warning(files: tuple[Path, ...]) -> None:
    ended = analyze("verify", "--man=no", *files)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_the_service_is_little_exposed() -> None:
    ended = analyze("security", "--offline=true", SERVICE)
    assert (ended.returncode, ended.stderr) == (0, "")
    found = re.search(r"Overall exposure level for smtpd-fork.service: ([\d.]+) ", ended.stdout)
    assert found, ended.stdout
    assert float(found[1]) < MOST_EXPOSURE


def test_the_template_differs_from_the_service_only_for_several_processes() -> None:
    one, several = settings(SERVICE), settings(TEMPLATE)
    differ = {name for name in one.keys() | several.keys() if one.get(name) != several.get(name)}
    unit = {"Description", "PartOf", "Conflicts", "WantedBy", "DefaultInstance"}
    assert differ - unit == {
        *("Environment", "RuntimeDirectory", "RuntimeDirectoryMode", "User"),
        *("Sockets", "NonBlocking"),
    }
    (more,) = set(several["Environment"]) - set(one["Environment"])
    assert more == f"SMTPD_FORK_CONTROL=%t/{several['RuntimeDirectory'][0]}/control"
    assert several["Sockets"] == [SOCKET.name]
    assert several["NonBlocking"] == ["yes"], "all processes share the socket, and so O_NONBLOCK"


def test_the_files_match_the_daemon() -> None:
    service, sock = settings(SERVICE), settings(SOCKET)
    variables = {str(option.envvar) for option in OPTIONS}
    named = [value.partition("=")[0] for value in service["Environment"]]
    assert set(named) - {"PATH"} <= variables
    statuses = {int(word) for word in service["RestartPreventExitStatus"][0].split()}
    assert statuses <= set(ExitStatus)
    assert sock["FileDescriptorName"][0] in PROTOCOLS
    assert service["CapabilityBoundingSet"] == [""]
    # The version of systemd in Debian 12 does not support notify-reload.
    assert service["Type"] == ["notify"]


def test_systemd_accepts_the_changes_of_the_unit_in_the_docs(
    tmp_path: Path,
) -> None:
    page = (PACKAGING.parent / "docs/systemd.md").read_text()
    blocks = re.findall(r"^```ini\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    text = SERVICE.read_text()
    for line in ("Requires=smtpd-fork.socket\n", "Also=smtpd-fork.socket\n", " smtpd-fork.socket"):
        assert line in text
        text = text.replace(line, "")
    without = tmp_path / SERVICE.name
    changes = [block for block in blocks if block.startswith("[Service]")]
    without.write_text("\n".join([text, *changes]))
    ended = analyze("verify", "--man=no", without)
    assert (ended.returncode, ended.stderr) == (0, "")
    found = re.search(
        r"exposure level \S+ \S+ ([\d.]+)", analyze("security", "--offline=true", without).stdout
    )
    assert found
    assert float(found[1]) < MOST_EXPOSURE
    (more,) = [block for block in blocks if "[Socket]" in block]
    (tmp_path / "smtpd-fork-smtps.socket").write_text(more)
    ended = analyze("verify", "--man=no", tmp_path / "smtpd-fork-smtps.socket")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_systemd_accepts_the_changes_of_the_debian_package(tmp_path: Path) -> None:
    for unit in (SERVICE, SOCKET):
        shutil.copy(unit, tmp_path)
        changes = tmp_path / f"{unit.name}.d"
        changes.mkdir()
        shutil.copy(PACKAGING / f"deb/{unit.suffix[1:]}.conf", changes / "debian.conf")
    shutil.copy(TEMPLATE, tmp_path)
    (tmp_path / f"{TEMPLATE.name}.d").mkdir()
    shutil.copy(PACKAGING / "deb/process.conf", tmp_path / f"{TEMPLATE.name}.d/debian.conf")
    units = (SERVICE.name, SOCKET.name, "smtpd-fork@1.service")
    ended = analyze("verify", "--man=no", *(tmp_path / unit for unit in units))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


# -- the workflow of the forge -------------------------------------------------------------------


def test_the_workflow_runs_each_part_of_ci_on_the_pythons_that_the_package_names() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    script = (ROOT / ".ci/run").read_text()
    parts = set(re.findall(r"^part_(\w+)\(\)", script, re.MULTILINE))
    run = {
        part
        for job in workflow.values()
        for step in job["steps"]
        if step.get("run", "").startswith(".ci/run")
        for part in step["run"].replace("${{ matrix.part }}", "container bare deb").split()[1:]
    }
    assert run == parts - {"pythons"}, "the Pythons are a matrix there"
    assert workflow["container"]["strategy"]["matrix"]["part"] == ["container", "bare", "deb"]
    project = (ROOT / "pyproject.toml").read_text()
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    assert workflow["test"]["strategy"]["matrix"]["python"] == named
    assert f"for version in {' '.join(named[1:])}; do" in script


def test_every_make_target_is_described_for_contributors() -> None:
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    page = (ROOT / "CONTRIBUTING.md").read_text()
    missing = {name for name in targets if f"`make {name}`" not in page} - {"help", "clean"}
    assert not missing


# -- the wheel ---------------------------------------------------------------------------------

DATA = {
    "share/man/man8/smtpd-fork.8": PACKAGING / "smtpd-fork.8",
    "lib/systemd/system/smtpd-fork.service": SERVICE,
    "lib/systemd/system/smtpd-fork.socket": SOCKET,
    "lib/systemd/system/smtpd-fork@.service": TEMPLATE,
    "lib/systemd/system/smtpd-fork.target": TARGET,
    "share/smtpd-fork/smtpd-fork.toml": ROOT / "examples/smtpd-fork.toml",
    "share/smtpd-fork/fail2ban-filter.conf": PACKAGING / "fail2ban/smtpd-fork.conf",
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prefix of a new environment that contains only the wheel of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    build = f"from flit_core.buildapi import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    prefix = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", prefix], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    install = ["install", "--quiet", "--no-index", "--no-deps", str(wheel)]
    into = ["--python", str(prefix / "bin/python")]
    subprocess.run([*pip, *into, *install], check=True, capture_output=True)
    return prefix


@pytest.mark.parametrize("name", DATA)
def test_the_wheel_installs_the_manual_page_the_units_and_the_example(
    installed: Path, name: str
) -> None:
    assert (installed / name).read_bytes() == DATA[name].read_bytes()
    assert not (installed / name).is_symlink()


def test_the_command_of_the_wheel_runs(installed: Path) -> None:
    """Use the libraries of the environment that runs the tests, but not its smtpd_fork."""
    asked = subprocess.run(
        [installed / "bin/smtpd-fork", "--version"],
        env={"PYTHONPATH": sysconfig.get_path("platlib")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert __version__ in asked.stdout


# -- the daemon, confined ----------------------------------------------------------------------


def filtered(names: list[str]) -> set[str]:
    """Return the system calls of SystemCallFilter= as systemd interprets it."""
    allowed: set[str] = set()
    for line in names:
        calls = {call for word in line.lstrip("~").split() for call in members(word)}
        allowed = allowed - calls if line.startswith("~") else allowed | calls
    # systemd.exec(5): execve(2) and the exit calls are always allowed; @default is always included.
    return allowed | members("@default") | {"execve", "exit", "exit_group", "rt_sigreturn"}


def members(word: str) -> set[str]:
    if not word.startswith("@"):
        return {word}
    listed = analyze("syscall-filter", word).stdout.splitlines()[1:]
    names = [line.strip() for line in listed if line.strip() and not line.strip().startswith("#")]
    return {call for name in names for call in members(name)}


@pytest.fixture
def confine(public: Path) -> list[str]:
    """The words before a command that confine it as systemd would."""
    needs_root()
    if subprocess.run([SYSTEM_PYTHON, "-c", "import seccomp"], check=False).returncode:
        cannot("python3-seccomp is not installed")
    calls = filtered(settings(SERVICE)["SystemCallFilter"])
    assert {"accept4", "read"} <= calls
    assert not {"chown", "setuid", "setrlimit", "mount"} & calls
    (public / "calls").write_text("\n".join(sorted(calls)))
    return [str(SYSTEM_PYTHON), "-c", CONFINE, str(public / "calls")]


@on_both_loops
def test_the_daemon_works_with_the_filter_and_without_executable_memory(
    public: Path, command_for_nobody: list[str], confine: list[str], loop: str
) -> None:
    """Deliver a message into the Maildir, reload, upgrade, and stop."""
    (public / "state").mkdir()
    os.chown(public / "state", 65534, 65534)
    command = [*confine, *command_for_nobody]
    options = ("-l", "127.0.0.1:0", "--handler", "maildir:state/Maildir", "--loop", loop)
    with Daemon(*options, cwd=public, command=command) as daemon:
        status = Process(daemon.process.pid).status
        assert status["Seccomp"] == ["2"], "the filter is there"
        release = tuple(int(n) for n in os.uname().release.split("-")[0].split(".")[:2])
        assert ("no PR_SET_MDWE" in daemon.log) == (release < (6, 3)), "prctl(2): since Linux 6.3"
        daemon.deliver()
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("configuration reloaded")
        daemon.signal(signal.SIGUSR2)
        new = int(daemon.wait_for(r"process (\d+) has inherited the sockets")[1])
        try:
            assert daemon.process.wait(20) == 0
            daemon.deliver()
        finally:
            os.kill(new, signal.SIGTERM)
        until(lambda: daemon.log.endswith("stopped"), "it stops")
        assert not re.search("ERROR|Traceback", daemon.log)
    assert len(messages(public / "state/Maildir")) == 2


@pytest.mark.parametrize(
    ("handler", "stored"),
    [
        ("maildir:state/{domain}/{user}", "state/*/*/new/*"),
        ("mbox:state/{user}", "state/*"),
        (
            "pipe:sh -c 'cat > $0' STATE/out {sender},max-memory=1g,max-cpu=60s",
            "state/out",
        ),
    ],
)
@on_both_loops
def test_final_delivery_works_with_the_filter(
    public: Path,
    command_for_nobody: list[str],
    confine: list[str],
    loop: str,
    handler: str,
    stored: str,
) -> None:
    (public / "state").mkdir()
    os.chown(public / "state", 65534, 65534)
    named = handler.replace("STATE", str(public / "state"))
    options = ("-l", "127.0.0.1:0", "--handler", named, "--loop", loop)
    with Daemon(*options, cwd=public, command=[*confine, *command_for_nobody]) as daemon:
        daemon.deliver()
        assert not re.search("ERROR|Traceback", daemon.log)
    (path,) = public.glob(stored)
    assert "\nhello\n" in path.read_text()


def test_the_command_of_the_unit_starts_the_daemon(tmp_path: Path) -> None:
    (start,) = settings(SERVICE)["ExecStart"]
    path = f"{Path(COMMAND[0]).parent}:/usr/bin:/bin"
    with Daemon(*LOCAL, cwd=tmp_path, command=start.split(), environment={"PATH": path}) as daemon:
        daemon.deliver()
        assert daemon.stop() == 0
