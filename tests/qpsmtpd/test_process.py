"""qpsmtpd-forkserver and smtpd-fork: the process, its user, its pid-file, its signals."""

from __future__ import annotations

import os
import signal
import socket

import pytest
from support.daemon import COMMAND, is_alive, until, wait_until_gone
from support.differences import Facts, both
from support.peers import proc
from support.ports import free_port
from support.processes import children, identity
from support.qpsmtpd import LOOPBACK, USER, Bench, Talk, as_user, at, greeted, is_free, kind

pytestmark = [pytest.mark.peers, pytest.mark.xdist_group("qpsmtpd")]


@both("process-per-session")
def test_a_session_is_a_process_or_is_none(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve(*at(port)) as running:
        before = len(children(running.pid))
        with Talk(port) as talk:
            return {
                "greeted": kind(talk),
                "process-per-session": len(children(running.pid)) - before,
            }


@both("user-by-number", "user-root", root=True)
def test_user_is_whom_it_becomes(bench: Bench) -> Facts:
    with bench.serve(*at(free_port()), user=("--user", USER)) as running:
        facts: Facts = {"identity": identity(running.pid)}
    facts["user-by-number"] = bench.starts(*at(free_port()), user=("-u", "65534"))
    facts["user-root"] = bench.starts(*at(free_port()), user=("-u", "root"))
    return facts


@both(root=True)
def test_an_unknown_user_fails_the_start(bench: Bench) -> Facts:
    done = bench.run(*at(free_port()), "-u", "no-such-user")
    return {
        "failed": done.returncode != 0,
        "named": "no-such-user" in done.stderr,
        "lines": len(done.stderr.splitlines()),
    }


@both("root-without-user", root=True)
def test_root_is_told_to_name_a_user(bench: Bench) -> Facts:
    options = at(free_port())
    if bench.starts(*options, user=()):
        return {"root-without-user": "serves"}
    done = bench.run(*options)
    return {"root-without-user": (done.returncode, done.stderr.split()[-1])}


@both("detached-directory", "detached-session-leader")
def test_detach_returns_0_and_leaves_a_daemon_that_serves(bench: Bench) -> Facts:
    port = free_port()
    done = bench.run(*at(port), "-d", "--pid-file", str(bench.pid_file), *as_user())
    until(lambda: bench.pid_file.exists() and bench.pid_file.read_text().endswith("\n"), "the pid")
    pid = int(bench.pid_file.read_text())
    try:
        status = proc(pid, "stat").read_text().rpartition(")")[2].split()
        directory = os.readlink(proc(pid, "cwd"))
        facts = {
            "status": done.returncode,
            "stdout": done.stdout,
            "our child": int(status[1]) == os.getpid(),
            "our session": os.getsid(pid) == os.getsid(0),
            "terminal": status[4],
            "standard descriptors": {os.readlink(proc(pid, "fd", fd)) for fd in range(3)},
            "detached-directory": "as before" if directory == str(bench.folder) else directory,
            "detached-session-leader": os.getsid(pid) == pid,
            "greeted": greeted(port),
        }
        os.kill(pid, signal.SIGTERM)
        wait_until_gone(pid)
    finally:
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)
    return facts | {"pid-file": bench.pid_file.exists(), "free": is_free(port)}


@both()
def test_detach_fails_where_the_foreground_would(bench: Bench) -> Facts:
    with socket.create_server((LOOPBACK, 0)) as taken:
        done = bench.run(*at(taken.getsockname()[1]), "--detach", *as_user())
    return {"failed": done.returncode != 0, "lines on stderr": len(done.stderr.splitlines())}


def leave(bench: Bench, pid: int) -> None:
    """Leave a pid-file behind, as an earlier daemon might."""
    bench.pid_file.write_text(f"{pid}\n")
    if bench.command != COMMAND:  # qpsmtpd opens it as its user; ours trusts no such file
        bench.pid_file.chmod(0o666)


@both()
def test_the_pid_file_has_the_pid_and_goes_with_sigterm_or_sigint(bench: Bench) -> Facts:
    facts: Facts = {}
    leave(bench, 999_999_999)  # of one that ended long ago
    for number in (signal.SIGTERM, signal.SIGINT):
        port = free_port()
        with bench.serve(*at(port), "--pid-file", str(bench.pid_file)) as running:
            wanted = f"{running.pid}\n"
            until(lambda text=wanted: bench.pid_file.read_text() == text, "the pid")  # type: ignore[misc]
            facts[number.name] = running.stop(number), bench.pid_file.exists(), is_free(port)
    return facts


@both("pid-file-of-another-process")
def test_a_second_instance_with_the_same_pid_file_does_not_start(bench: Bench) -> Facts:
    port, path = free_port(), str(bench.pid_file)
    with bench.serve(*at(port), "--pid-file", path) as running:
        until(lambda: bench.pid_file.read_text() == f"{running.pid}\n", "the pid")
        done = bench.run(*at(free_port()), "--pid-file", path, *as_user())
        facts: Facts = {
            "failed": done.returncode != 0,
            "names the pid": str(running.pid) in done.stderr,
            "still there": bench.pid_file.read_text() == f"{running.pid}\n",
            "greeted": greeted(port),
        }
    leave(bench, os.getpid())
    facts["pid-file-of-another-process"] = bench.starts(*at(free_port()), "--pid-file", path)
    return facts


@both("pid-file-in-a-foreign-directory", root=True)
def test_the_pid_file_goes_also_where_the_user_may_not_remove_it(bench: Bench) -> Facts:
    run = bench.folder / "run"
    run.mkdir(mode=0o755)
    pid_file = run / "pid"
    with bench.serve(*at(free_port()), "--pid-file", str(pid_file)) as running:
        until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"), "the pid")
        status = running.stop()
    left = "left" if pid_file.exists() else "removed"
    return {"status": status, "pid-file-in-a-foreign-directory": left}


@both("reply-at-stop")
def test_sigterm_ends_the_sessions_and_frees_the_port(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve(*at(port), "--pid-file", str(bench.pid_file)) as running:
        with Talk(port) as talk:
            facts: Facts = {"greeted": kind(talk)}
            facts["status"] = running.stop()
            facts["reply-at-stop"] = talk.reply().code
            facts["closed"] = talk.closed
        return facts | {"pid-file": bench.pid_file.exists(), "free": is_free(port)}


@both("interrupt-after-a-session")
def test_sigint_works_after_a_session_as_before_it(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve(*at(port), "--pid-file", str(bench.pid_file)) as running:
        facts: Facts = {"greeted": greeted(port)}
        status = running.stop(signal.SIGINT)
        left = "left" if bench.pid_file.exists() else "removed"
        return facts | {"interrupt-after-a-session": (status, left), "free": is_free(port)}


@both()
def test_sighup_leaves_it_serving(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve(*at(port)) as running:
        facts: Facts = {"before": greeted(port)}
        running.process.send_signal(signal.SIGHUP)
        return facts | {"after": greeted(port), "status": running.stop()}
