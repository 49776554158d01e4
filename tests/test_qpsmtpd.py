"""qpsmtpd-forkserver and smtpd-fork, given the same options, behave the same.

Each test here is an observation that is made of both, at the same time. What they differ in has to
be in INTENDED, each difference with both values, and in the table of docs/qpsmtpd.md, with the
reason. A difference that is not listed fails the test, and so does one that is and is none.
"""

from __future__ import annotations

import os
import re
import signal
import smtplib
import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from support.daemon import PATIENCE, is_alive, wait_until_gone
from support.peers import cannot, needs_root, peer
from support.qpsmtpd import (
    HOSTNAME,
    PLUGINS,
    USER,
    Bench,
    Talk,
    as_user,
    children,
    first_of,
    free_port,
    identity,
    listening,
    make_qpsmtpd,
    make_smtpd_fork,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Facts: TypeAlias = dict[str, Any]
Observation: TypeAlias = "Callable[[Bench], Facts]"

LOOPBACK = "127.0.0.1"

LONG_SECONDS = 1.5
"""How long a client is listened to that hears something from one of the two."""

USAGE = (0, "stdout")
"""qpsmtpd-forkserver prints its usage and exits 0, whatever was wrong."""

COMPLAINT = (64, "stderr")
"""smtpd-fork says in one line what was wrong, and exits with EX_USAGE."""

INTENDED: dict[str, tuple[Any, Any]] = {
    # -- options
    "bad-value": ({USAGE}, {COMPLAINT}),
    "port-out-of-range": ("serves another port", COMPLAINT),
    "limit-connections-0": ("greets nobody", COMPLAINT),
    "max-from-ip-negative": ("greets nobody", COMPLAINT),
    "same-address-twice": (False, True),
    "ipv6-without-brackets": (USAGE, "serves"),
    "relative-pid-file": (USAGE, "serves"),
    "abbreviated-options": ("serves", COMPLAINT),
    "extra-arguments": ("serves", COMPLAINT),
    "no-rdns": ("serves", COMPLAINT),
    "exit-status-of-a-failed-start": ([98, 99], [71, 71]),
    # -- limits
    "default-limit-connections": ("waits", 2),
    "default-max-from-ip": (4, 2),
    "limit-connections-over-several-sockets": (2, 1),
    "max-from-ip-on-the-default-address": ([2, 2], [4, 4]),
    "max-from-ip-takes-a-plugin": (2, 4),
    "max-from-ip-reply": (451, 421),
    # -- the process
    "process-per-session": (1, 0),
    "root-without-user": ((255, "smtpd"), "serves"),
    "user-by-number": (False, True),
    "user-root": (True, False),
    "detached-directory": ("as before", "/"),
    "detached-session-leader": (True, False),
    "pid-file-of-another-process": (False, True),
    "pid-file-in-a-foreign-directory": ("left", "removed"),
    "interrupt-after-a-session": ((-signal.SIGINT, "left"), (0, "removed")),
    "reply-at-stop": (0, 421),
    # -- the dialogue
    "version-in-banner": (True, False),
    "ehlo-size": (False, True),
    "hello-again": (5, 2),
    "starttls-without-certificate": (5, 4),
    "mail-without-address": (2, 5),
    "mail-within-a-transaction": (2, 5),
    "mail-with-an-unknown-parameter": (2, 5),
    "mail-with-a-size-too-large": (2, 5),
    "rcpt-with-an-unknown-parameter": (2, 5),
    "rcpt-of-a-foreign-domain": (5, 2),
    "vrfy-without-argument": (2, 5),
    "vrfy-of-a-word": (2, 5),
    "rset-with-argument": (2, 5),
    "data-with-argument": (3, 5),
    "long-command": (2, 5),
    "many-unknown-commands": ([500, 500], [421, 0]),
    "bare-lf-ends-data": ([250, 500], [550, 250]),
    "bare-lf-behind-final-dot": (421, 550),
    # -- the message
    "authentication-results": (True, False),
    "received-names-id-and-recipient": (False, True),
    "message-without-header": ("lost", "stored"),
}  # fmt: skip

observed: set[str] = set()
"""The differences that some test here observes."""

DOCS = Path(__file__).parent.parent / "docs" / "qpsmtpd.md"


def both(
    *differences: str, plugins: Sequence[str] = PLUGINS, root: bool = False, ipv6: bool = False
) -> Callable[[Observation], Callable[[], None]]:
    """Make a test of an observation: its facts are the same for both, but for *differences*.

    :param plugins: of qpsmtpd
    :param root: it takes root
    :param ipv6: it takes IPv6 on loopback
    """
    observed.update(differences)

    def wrap(observe: Observation) -> Callable[[], None]:
        def test() -> None:
            program = peer("qpsmtpd-forkserver")
            if root:
                needs_root()
            if ipv6:
                needs_ipv6()
            # Not tmp_path, which nobody but its owner can enter.
            with tempfile.TemporaryDirectory(prefix="qpsmtpd-") as name:
                top = Path(name)
                top.chmod(0o755)
                benches = [
                    make_qpsmtpd(program, top / "qpsmtpd", plugins),
                    make_smtpd_fork(top / "smtpd-fork"),
                ]
                with ThreadPoolExecutor() as pool:
                    theirs, ours = pool.map(observe, benches)
            assert theirs.keys() == ours.keys()
            differing = {k: (theirs[k], ours[k]) for k in theirs if theirs[k] != ours[k]}
            assert differing == {key: INTENDED[key] for key in differences}

        test.__name__ = observe.__name__
        test.__doc__ = observe.__doc__
        return test

    return wrap


def needs_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        cannot("there is no IPv6 on loopback")


def at(port: int, host: str = LOOPBACK) -> tuple[str, str]:
    return ("-l", f"{host}:{port}")


def kind(talk: Talk) -> int:
    """Return the first digit of what a client is told."""
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
    """Return the status of a start that fails, and where it says so."""
    done = bench.run(*options)
    return done.returncode, "stdout" if done.stdout else "stderr" if done.stderr else "nowhere"


def outcome_or_serves(
    bench: Bench, *options: str, user: Sequence[str] | None = None
) -> tuple[int, str] | str:
    if bench.starts(*options, user=user):
        return "serves"
    return outcome(bench, *options, *(as_user() if user is None else user))


# -- what is bound -----------------------------------------------------------------------------


@both()
def test_an_address_without_a_port_is_bound_on_every_port(bench: Bench) -> Facts:
    first, second, own = ports = [free_port() for _ in range(3)]
    options = ["-l", LOOPBACK, "-l", f"127.0.0.2:{own}", "-l", "127.0.0.3"]
    with bench.serve(*options, "-p", str(first), "-p", str(second)) as running:
        return {"bound": {(host, ports.index(port)) for host, port in listening(running.pid)}}


@both()
def test_ports_are_not_bound_where_every_address_names_one(bench: Bench) -> Facts:
    own, unused = ports = [free_port() for _ in range(2)]
    options = [f"--listen-address={LOOPBACK}:{own}", "--port", str(unused)]
    with bench.serve(*options) as running:
        bound = {(host, ports.index(port)) for host, port in listening(running.pid)}
        return {"bound": bound, "greeted": greeted(own), "free": is_free(unused)}


@both(ipv6=True)
def test_an_ipv6_address_is_written_in_brackets(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve("-l", f"[::1]:{port}") as running:
        bound = {host for host, _ in listening(running.pid)}
        return {"bound": bound, "greeted": greeted(port, "::1")}


@both("max-from-ip-on-the-default-address", ipv6=True)
def test_without_an_address_both_families_are_served_on_all_interfaces(bench: Bench) -> Facts:
    port = free_port()
    facts: Facts = {"first": [], "max-from-ip-on-the-default-address": []}
    with bench.serve("-p", str(port), "-m", "1") as running, ExitStack() as talks:
        facts["bound"] = {host for host, _ in listening(running.pid)}
        for host in (LOOPBACK, "::1"):
            for fact in ("first", "max-from-ip-on-the-default-address"):
                facts[fact].append(kind(talks.enter_context(Talk(port, host))))
    return facts


@both("same-address-twice")
def test_the_same_address_twice_is_bound_once_or_not_at_all(bench: Bench) -> Facts:
    port = free_port()
    return {"same-address-twice": bench.starts(*at(port), *at(port))}


@both("exit-status-of-a-failed-start")
def test_an_address_that_cannot_be_bound_fails_the_start(bench: Bench) -> Facts:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        runs = [bench.run(*at(port), *as_user()), bench.run(*at(port, "192.0.2.1"), *as_user())]
    return {
        "failed": [run.returncode != 0 for run in runs],
        "lines on stderr": [len(run.stderr.splitlines()) for run in runs],
        "names the address": [f":{port}" in run.stderr for run in runs],
        "exit-status-of-a-failed-start": [run.returncode for run in runs],
    }


# -- limits --------------------------------------------------------------------------------------


@both()
def test_beyond_limit_connections_a_client_waits_until_another_leaves(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve(*at(port), "-c", "1") as _, Talk(port) as first:
        facts: Facts = {"first": kind(first)}
        with Talk(port, source="127.0.0.2") as second:
            facts["is told something"] = second.hears()
            first.leave()
            facts["second"] = kind(second)
    return facts


@both()
def test_max_from_ip_does_not_override_limit_connections(bench: Bench) -> Facts:
    port = free_port()
    options = [*at(port), "--limit-connections", "1", "--max-from-ip", "2"]
    with bench.serve(*options) as _, Talk(port) as first:
        facts: Facts = {"first": kind(first)}
        with Talk(port) as second:
            facts["is told something"] = second.hears()
            first.leave()
            facts["second"] = kind(second)
    return facts


@both("limit-connections-over-several-sockets")
def test_limit_connections_counts_the_sessions_of_all_sockets(bench: Bench) -> Facts:
    ports = [free_port(), free_port()]
    with bench.serve(*at(ports[0]), *at(ports[1]), "-c", "1") as _, ExitStack() as talks:
        first = talks.enter_context(Talk(ports[0]))
        facts: Facts = {"first": kind(first)}
        waiting = [talks.enter_context(Talk(port)) for port in ports]
        facts["told something"] = any(talk.hears() for talk in waiting)
        first.leave()
        lucky = first_of(waiting)
        facts["lucky"] = kind(lucky)
        waiting.remove(lucky)
        facts["limit-connections-over-several-sockets"] = 1 + waiting[0].hears(LONG_SECONDS)
    return facts


@both("max-from-ip-reply")
def test_beyond_max_from_ip_a_client_is_refused_until_another_leaves(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve(*at(port), "-m", "1") as _, Talk(port) as first:
        facts: Facts = {"first": kind(first)}
        with Talk(port) as second:
            code = second.reply().code
            facts |= {"refused": code // 100, "closed": second.closed, "max-from-ip-reply": code}
        with Talk(port, source="127.0.0.2") as other:
            facts["other address"] = kind(other)
        first.leave()
        # qpsmtpd counts out who has left before it waits for the next, not after.
        until(lambda: greeted(port) == 2, "a place")
    return facts


@both("max-from-ip-takes-a-plugin", plugins=("no_dns", "rcpt_ok"))
def test_max_from_ip_takes_a_plugin(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve(*at(port), "-m", "1") as _, Talk(port) as first, Talk(port) as second:
        return {"first": kind(first), "max-from-ip-takes-a-plugin": kind(second)}


@both("default-max-from-ip")
def test_max_from_ip_has_a_default(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve(*at(port)) as _, ExitStack() as talks:
        kinds = [kind(talks.enter_context(Talk(port))) for _ in range(6)]
    return {"five": kinds[:5], "default-max-from-ip": kinds[5]}


@both("default-limit-connections")
def test_limit_connections_has_a_default_and_max_from_ip_0_is_no_limit(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve(*at(port), "-m", "0") as _, ExitStack() as talks:
        kinds = [kind(talks.enter_context(Talk(port))) for _ in range(15)]
        last = talks.enter_context(Talk(port))
        return {
            "fifteen": kinds,
            "default-limit-connections": kind(last) if last.hears(LONG_SECONDS) else "waits",
        }


# -- the process ---------------------------------------------------------------------------------


@both("process-per-session")
def test_a_session_is_a_process_or_is_none(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve(*at(port)) as running:
        before = children(running.pid)
        with Talk(port) as talk:
            return {
                "greeted": kind(talk),
                "process-per-session": children(running.pid) - before,
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
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        directory = os.readlink(f"/proc/{pid}/cwd")
        facts = {
            "status": done.returncode,
            "stdout": done.stdout,
            "our child": int(status[1]) == os.getpid(),
            "our session": os.getsid(pid) == os.getsid(0),
            "terminal": status[4],
            "standard descriptors": {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)},
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


@both()
def test_the_pid_file_has_the_pid_and_goes_with_sigterm_or_sigint(bench: Bench) -> Facts:
    facts: Facts = {}
    bench.pid_file.write_text("999999999\n")  # of one that ended long ago
    bench.pid_file.chmod(0o666)
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
    bench.pid_file.write_text(f"{os.getpid()}\n")
    bench.pid_file.chmod(0o666)
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


# -- values and options that are refused -----------------------------------------------------------


@both()
def test_help_goes_to_stdout_and_names_every_option(bench: Bench) -> Facts:
    facts: Facts = {}
    for flag in ("-h", "--help"):
        done = bench.run(flag)
        named = {
            option: option in done.stdout
            for option in (
                "-p, --port", "-u, --user", "-c, --limit-connections", "-m, --max-from-ip",
                "-l, --listen-address", "-d, --detach", "--pid-file",
            )
        }  # fmt: skip
        facts[flag] = done.returncode, done.stderr, named
    return facts


@both("bad-value")
def test_a_bad_value_does_not_start_it(bench: Bench) -> Facts:
    bad = [
        "-p smtp", "-p -1", "-c many", "-c -1", "-m few", f"-l {LOOPBACK}:smtp", "-l a@b",
        "--no-such-option", "-u",
    ]  # fmt: skip
    return {"bad-value": {outcome(bench, *options.split(" ")) for options in bad}}


@both("port-out-of-range", "limit-connections-0", "max-from-ip-negative")
def test_a_value_out_of_its_range_does_not_start_it(bench: Bench) -> Facts:
    def serves_another() -> str:
        return "nobody" if is_free(port) else "serves another port"

    def greets() -> str:
        with Talk(port) as talk:
            return "greets" if talk.hears() and kind(talk) == 2 else "greets nobody"

    port = free_port()
    facts: Facts = {}
    for key, options, look in (
        ("port-out-of-range", ["-l", LOOPBACK, "-p", str(port + 65536)], serves_another),
        ("limit-connections-0", [*at(port), "-c", "0"], greets),
        ("max-from-ip-negative", [*at(port), "-m", "-1"], greets),
    ):
        try:
            with bench.serve(*options):
                facts[key] = look()
        except AssertionError:
            facts[key] = outcome(bench, *options, *as_user())
    return facts


@both("ipv6-without-brackets", "relative-pid-file", ipv6=True)
def test_an_address_or_a_path_may_be_written_otherwise(bench: Bench) -> Facts:
    port = free_port()
    return {
        "ipv6-without-brackets": outcome_or_serves(bench, "-l", "::1", "-p", str(port)),
        "relative-pid-file": outcome_or_serves(bench, *at(port), "--pid-file", "pid"),
    }


@both("abbreviated-options", "extra-arguments", "no-rdns")
def test_what_is_no_option_of_the_man_page_is_refused(bench: Bench) -> Facts:
    port = at(free_port())
    return {
        "abbreviated-options": outcome_or_serves(bench, *port, "--limit-c", "5"),
        "extra-arguments": outcome_or_serves(bench, *port, "extra"),
        "no-rdns": outcome_or_serves(bench, *port, "--no-rdns"),
    }


# -- the dialogue --------------------------------------------------------------------------------

HELLO = ("EHLO client.example",)
MAIL = (*HELLO, "MAIL FROM:<a@example.com>")
RCPT = (*MAIL, "RCPT TO:<b@example.com>")
DATA = (*RCPT, "DATA")

DIALOGUE: dict[str, tuple[Iterable[str], str]] = {
    "HELO": ((), "HELO client.example"),
    "EHLO": ((), "EHLO client.example"),
    "ehlo": ((), "ehlo client.example"),
    "HELO without name": ((), "HELO"),
    "EHLO without name": ((), "EHLO"),
    "MAIL before HELO": ((), "MAIL FROM:<a@example.com>"),
    "RCPT before HELO": ((), "RCPT TO:<b@example.com>"),
    "DATA before HELO": ((), "DATA"),
    "QUIT before HELO": ((), "QUIT"),
    "MAIL": (HELLO, "MAIL FROM:<a@example.com>"),
    "MAIL after HELO": (["HELO client.example"], "MAIL FROM:<a@example.com>"),
    "MAIL with a space": (HELLO, "mail from: <a@example.com>"),
    "MAIL from nobody": (HELLO, "MAIL FROM:<>"),
    "MAIL with BODY": (HELLO, "MAIL FROM:<a@example.com> BODY=8BITMIME"),
    "MAIL with SIZE": (HELLO, "MAIL FROM:<a@example.com> SIZE=100"),
    "MAIL alone": (HELLO, "MAIL"),
    "MAIL TO": (HELLO, "MAIL TO:<a@example.com>"),
    "MAIL of no address": (HELLO, "MAIL FROM:<a@>"),
    "MAIL without brackets": (HELLO, "MAIL FROM:a@example.com"),
    "RCPT": (MAIL, "RCPT TO:<b@example.com>"),
    "RCPT twice": (RCPT, "RCPT TO:<c@example.com>"),
    "RCPT postmaster": (MAIL, "RCPT TO:<postmaster>"),
    "RCPT before MAIL": (HELLO, "RCPT TO:<b@example.com>"),
    "RCPT alone": (MAIL, "RCPT"),
    "RCPT of no address": (MAIL, "RCPT TO:<b@>"),
    "RCPT after RSET": ((*MAIL, "RSET"), "RCPT TO:<b@example.com>"),
    "DATA": (RCPT, "DATA"),
    "DATA before MAIL": (HELLO, "DATA"),
    "DATA before RCPT": (MAIL, "DATA"),
    "message": (DATA, "Subject: x\r\n\r\nx\r\n."),
    "empty message": (DATA, "."),
    "NOOP after message": ((*DATA, "x\r\n."), "NOOP"),
    "MAIL after message": ((*DATA, "x\r\n."), "MAIL FROM:<a@example.com>"),
    "RCPT after message": ((*DATA, "x\r\n."), "RCPT TO:<b@example.com>"),
    "RSET": (RCPT, "RSET"),
    "NOOP": ((), "NOOP"),
    "NOOP with argument": ((), "NOOP hello"),
    "VRFY": (HELLO, "VRFY b@example.com"),
    "VRFY with brackets": (HELLO, "VRFY <b@example.com>"),
    "vrfy-of-a-word": (HELLO, "VRFY b"),
    "EXPN": (HELLO, "EXPN list"),
    "HELP": (HELLO, "HELP"),
    "AUTH": (HELLO, "AUTH PLAIN AGEAYg=="),
    "QUIT": (HELLO, "QUIT"),
    "unknown": (HELLO, "FOO bar"),
    "empty": (HELLO, ""),
    "not ASCII": (HELLO, "\N{LATIN SMALL LETTER E WITH ACUTE}"),
    "hello-again": (HELLO, "EHLO client.example"),
    "starttls-without-certificate": (HELLO, "STARTTLS"),
    "mail-without-address": (HELLO, "MAIL FROM:"),
    "mail-within-a-transaction": (MAIL, "MAIL FROM:<a@example.com>"),
    "mail-with-an-unknown-parameter": (HELLO, "MAIL FROM:<a@example.com> FOO=BAR"),
    "mail-with-a-size-too-large": (HELLO, "MAIL FROM:<a@example.com> SIZE=9999999999"),
    "rcpt-with-an-unknown-parameter": (MAIL, "RCPT TO:<b@example.com> FOO=BAR"),
    "rcpt-of-a-foreign-domain": (MAIL, "RCPT TO:<b@elsewhere.example>"),
    "null-recipient": (MAIL, "RCPT TO:<>"),
    "vrfy-without-argument": (HELLO, "VRFY"),
    "rset-with-argument": (HELLO, "RSET x"),
    "data-with-argument": (RCPT, "DATA x"),
    "long-command": (HELLO, "NOOP " + 600 * "x"),
}
"""What a client says, and the commands before it, each of which is to be accepted."""


@both(*INTENDED.keys() & DIALOGUE.keys())
def test_a_command_is_answered_with_the_same_first_digit(bench: Bench) -> Facts:
    port = free_port()
    facts: Facts = {}
    with bench.serve(*at(port), "-m", "0") as _:
        for name, (before, command) in DIALOGUE.items():
            with Talk(port) as talk:
                facts["banner"] = kind(talk)
                for one in before:
                    assert talk.say(one).code // 100 in {2, 3}, (name, one)
                facts[name] = talk.say(command).code // 100
                if command == "QUIT":
                    facts[f"{name}: closed"] = talk.closed
    return facts


@both("version-in-banner", "ehlo-size")
def test_the_greeting_names_the_host_and_what_is_supported(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve(*at(port)) as _, Talk(port) as talk:
        (banner,) = talk.reply().lines
        first, *offered = talk.say(*HELLO).lines
    return {
        "banner": banner.split()[:2],
        "version-in-banner": bool(re.search(r"\d+\.\d+", banner.removeprefix(HOSTNAME))),
        "host": first.split()[0],
        "8BITMIME": "8BITMIME" in offered,
        "PIPELINING": "PIPELINING" in offered,
        "ehlo-size": any(line.startswith("SIZE") for line in offered),
    }


@both()
def test_commands_in_one_packet_are_answered_in_order(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve(*at(port)) as _, Talk(port) as talk:
        codes = [talk.reply().code, talk.say("\r\n".join((*RCPT, "NOOP"))).code]
        return {"codes": codes + [talk.reply().code for _ in RCPT]}


@both("bare-lf-ends-data", "bare-lf-behind-final-dot")
def test_only_crlf_dot_crlf_ends_a_message(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve(*at(port)) as _:
        with Talk(port) as talk:
            talk.reply()
            for one in DATA:
                talk.say(one)
            smuggled = [talk.say("x\n.\r\nFOO\r\n.").code, talk.say("NOOP").code]
        with Talk(port) as talk:
            talk.reply()
            for one in DATA:
                talk.say(one)
            behind = talk.say("x\r\n.\n\r\n.").code
    return {"bare-lf-ends-data": smuggled, "bare-lf-behind-final-dot": behind}


@both("many-unknown-commands")
def test_unknown_commands_are_answered_500_until_it_is_too_much(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve(*at(port)) as _, Talk(port) as talk:
        talk.reply()
        codes = [talk.say("FOO").code for _ in range(22)]
    return {"first twenty": codes[:20], "many-unknown-commands": codes[20:]}


# -- the message ---------------------------------------------------------------------------------


@both("authentication-results", "received-names-id-and-recipient")
def test_a_message_is_stored_in_a_maildir_with_the_headers_of_its_way(bench: Bench) -> Facts:
    port = free_port()
    body = "Subject: hello\nX-Long: one\n\ttwo\n\n.dot\n..dots\nthe end \n\xe9\n"
    sent = body.replace("\n", "\r\n").encode()
    with bench.serve(*at(port)) as _, smtplib.SMTP(LOOPBACK, port, timeout=PATIENCE) as client:
        client.sendmail("a@example.com", ["b@example.com"], sent, ["BODY=8BITMIME"])
    (path,) = (bench.maildir / "new").iterdir()
    text = path.read_bytes().decode()
    head, _, stored = text.partition("Subject: ")
    fields = re.sub(r"\n[ \t]+", " ", head).splitlines()
    (received,) = [field for field in fields if field.startswith("Received: ")]
    status = path.stat()
    return {
        "way": fields[:2],
        "received": (
            "[127.0.0.1]" in received,
            f" by {HOSTNAME} " in received,
            " with ESMTP" in received,
            bool(re.search(r"; \w{3}, +\d+ \w{3} \d{4} \d\d:\d\d:\d\d [+-]\d{4}$", received)),
        ),
        "received-names-id-and-recipient": bool(
            re.search(r" id \S+ for <b@example.com>;", received)
        ),
        "authentication-results": any(f.startswith("Authentication-Results") for f in fields),
        "fields": {field.partition(":")[0] for field in fields} - {"Authentication-Results"},
        "stored as it was sent": f"Subject: {stored}" == body,
        "left in tmp": list((bench.maildir / "tmp").iterdir()),
        "mode": oct(status.st_mode),
        "owner": status.st_uid,
    }


@both()
def test_a_message_to_several_is_stored_once_and_a_bounce_has_no_return_path(
    bench: Bench,
) -> Facts:
    port = free_port()
    with bench.serve(*at(port)) as _, smtplib.SMTP(LOOPBACK, port, timeout=PATIENCE) as client:
        client.sendmail("", ["b@example.com", "c@example.com"], "Subject: hello\n\nhello\n")
    (path,) = (bench.maildir / "new").iterdir()
    head = path.read_text().partition("\n\n")[0].splitlines()
    return {
        "return path": head[0],
        "delivered to": {line for line in head if line.startswith("Delivered-To:")},
    }


@both("message-without-header")
def test_lines_that_are_no_header_are_part_of_the_message(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve(*at(port)) as _, Talk(port) as talk:
        talk.reply()
        for one in DATA:
            talk.say(one)
        code = talk.say("not a header\r\n\r\nthe rest\r\n.").code
    (path,) = (bench.maildir / "new").iterdir()
    text = path.read_text()
    return {
        "code": code,
        "the rest": text.endswith("\n\nthe rest\n"),
        "message-without-header": "stored" if "\nnot a header\n" in text else "lost",
    }


# -- the table -----------------------------------------------------------------------------------


def test_every_intended_difference_is_in_the_table_with_its_reason_and_no_other() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in DOCS.read_text().splitlines()
        if re.match(r"\| `[a-z0-9-]+`: ", line)
    ]
    assert all(len(row) == 4 and all(row) for row in rows)
    assert sorted(row[0].split("`")[1] for row in rows) == sorted(INTENDED)


def test_every_intended_difference_is_observed_by_a_test() -> None:
    assert observed == INTENDED.keys()
