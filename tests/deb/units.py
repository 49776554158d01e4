"""The checks of tests/deb/run that need a running systemd; Debian's Python, its library only.

units.py CHECK runs one of the functions below as root, beside the systemd that runs the units. It
prints why it failed and exits with 1, or exits with 0.
"""

from __future__ import annotations

import json
import os
import smtplib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGKILL

UNIT = "smtpd-fork.service"
REFUSED = "127.0.0.66"
"""A client that the drop-in of tests/deb/run denies."""

HANG = "hang@example.org"
"""A sender for whom the drop-in's handler blocks the event loop."""

WATCHDOG_SECONDS = 3
"""WatchdogSec of that drop-in."""

PATIENCE_SECONDS = 60.0
HELD_SESSIONS = 20
SENDING_CLIENTS = 4

MAILS = Path("/var/lib/smtpd-fork/Maildir/new")
"""Where the drop-in's handlers put messages."""


def systemctl(*words: str) -> str:
    command = ["systemctl", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip() or done.stderr.strip()


def shown(*names: str) -> list[str]:
    """Return properties of the unit, at one time."""
    lines = systemctl("show", UNIT, "--property", ",".join(names)).splitlines()
    values = dict(line.split("=", 1) for line in lines)
    return [values[name] for name in names]


def main_pid() -> int:
    return int(shown("MainPID")[0])


def kill(signal: str) -> None:
    """Send *signal* as docs/systemd.md has it."""
    systemctl("kill", "--kill-whom=main", "-s", signal, UNIT)


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, f"in {PATIENCE_SECONDS:g} s not seen: {what}"
        time.sleep(0.02)


def journal(*words: str) -> list[dict[str, str]]:
    subprocess.run(["journalctl", "--sync"], timeout=60, check=True)
    command = ["journalctl", "--output", "json", "--no-pager", "--unit", UNIT, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return [json.loads(line) for line in done.stdout.splitlines()]


def session() -> smtplib.SMTP:
    client = smtplib.SMTP("127.0.0.1", 25, local_hostname="client.example", timeout=30)
    client.ehlo()
    return client


def send(client: smtplib.SMTP | None = None) -> None:
    """Deliver a message; fails if it is not accepted."""
    client = client or session()
    client.sendmail("a@example.org", ["b@example.com"], "Subject: x\r\n\r\nx\r\n")
    client.quit()


@contextmanager
def sending(*accepted: str) -> Iterator[list[str]]:
    """Deliver messages by several clients meanwhile; all have to be accepted.

    :param accepted: words that are as good: part of an error
    :yields: a word for each message: ``ok``, or what failed
    """
    results: list[str] = []
    stop = threading.Event()

    def deliver() -> None:
        while not stop.is_set():
            try:
                send()
                results.append("ok")
            except (OSError, smtplib.SMTPException) as error:
                good = any(word in repr(error) for word in accepted)
                results.append("ok" if good else repr(error))

    threads = [threading.Thread(target=deliver) for _ in range(SENDING_CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield results
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(results) == {"ok"}, results


def restarted_by_the_watchdog(hang: Callable[[], object]) -> None:
    pid, restarts = main_pid(), int(shown("NRestarts")[0])
    hang()
    begun = time.monotonic()
    until(lambda: shown("ActiveState") != ["active"], "the end of the hung process")
    seconds = time.monotonic() - begun
    assert seconds < WATCHDOG_SECONDS + 2, f"it hung for {seconds:.1f} s"  # 2: a busy machine
    until(lambda: shown("ActiveState") == ["active"], "a new process")
    assert main_pid() != pid
    assert int(shown("NRestarts")[0]) == restarts + 1
    assert any("Watchdog timeout" in entry["MESSAGE"] for entry in journal(f"UNIT={UNIT}"))
    send()


def idle() -> None:
    """A process that serves and has nothing to do is not taken for a hung one."""
    pid = main_pid()
    time.sleep(2.5 * WATCHDOG_SECONDS)
    assert main_pid() == pid, "it was restarted"


def stopped() -> None:
    """A process that SIGSTOP has stopped is restarted within WatchdogSec."""
    restarted_by_the_watchdog(lambda: kill("STOP"))


def blocked() -> None:
    """A process whose event loop a handler blocks is restarted within WatchdogSec."""
    client = session()
    restarted_by_the_watchdog(lambda: client.putcmd("mail", f"FROM:<{HANG}>"))
    client.close()


def upgrade() -> None:
    """SIGUSR2 moves MainPID to a new process; the unit stays active.

    No connection is refused, and every message that was accepted is in the Maildir.
    """
    old, (restarts,) = main_pid(), shown("NRestarts")
    mails = len(os.listdir(MAILS))
    begun = session()
    states = set()

    def moved() -> bool:
        pid, state = shown("MainPID", "ActiveState")
        states.add(state)
        return int(pid) != old

    with sending() as results:
        until(lambda: len(results) > 2, "messages before the upgrade")
        kill("USR2")
        until(moved, "another MainPID")
        count = len(results)
        until(lambda: len(results) > count + 2, "messages after the upgrade")
        assert Path(f"/proc/{old}").exists(), "the old process ended before its last session"
        send(begun)
        until(lambda: not Path(f"/proc/{old}").exists(), "the end of the old process")
        count = len(results)
        until(lambda: len(results) > count + 2, "messages after the end of the old process")
    assert len(os.listdir(MAILS)) - mails == len(results) + 1, "a message is lost"
    assert states == {"active"}, states
    new = main_pid()
    status = systemctl("status", "--lines=0", UNIT)
    assert "Active: active (running)" in status, status
    assert f"Main PID: {new} " in status, status
    assert shown("ActiveState", "SubState", "NRestarts") == ["active", "running", restarts]
    assert Path(f"/proc/{new}").owner() == "smtpd-fork"
    (entry,) = journal(f"_PID={old}", "--grep", "upgrade complete")
    assert f"process {new} has" in entry["MESSAGE"], entry
    done = systemctl("reload", UNIT)
    assert not done, done
    words = (f"_PID={new}", "--grep", "configuration reloaded")
    until(lambda: bool(journal(*words)), "the end of the reload")


def logged() -> None:
    """Entries of the journal have severity, identifier and fields; a refused client is found."""
    refusal = ""
    try:
        smtplib.SMTP("127.0.0.1", 25, timeout=30, source_address=(REFUSED, 0))
    except smtplib.SMTPConnectError as error:
        refusal = str(error)
    assert "554" in refusal, refusal
    (entry,) = journal("--grep", f"refused {REFUSED}")
    seen = {name: entry.get(name) for name in ("PRIORITY", "SYSLOG_IDENTIFIER", "_TRANSPORT")}
    assert seen == {
        "PRIORITY": "4", "SYSLOG_IDENTIFIER": "smtpd-fork", "_TRANSPORT": "journal"
    }, seen  # fmt: skip
    assert entry["MESSAGE"].startswith("refused "), entry["MESSAGE"]
    found = journal(f"SMTPD_FORK_CLIENT={entry['SMTPD_FORK_CLIENT']}")
    assert [e["MESSAGE"] for e in found] == [entry["MESSAGE"]], entry
    assert entry in journal("--priority", "warning")
    (serving,) = journal(f"_PID={main_pid()}", "--grep", "^serving")
    assert serving["PRIORITY"] == "6", serving
    # The drop-in's handler prints: standard error has the program's name as well.
    (printed,) = journal(f"_PID={main_pid()}", "--grep", "^printed")
    seen = {name: printed.get(name) for name in ("SYSLOG_IDENTIFIER", "_TRANSPORT")}
    assert seen == {"SYSLOG_IDENTIFIER": "smtpd-fork", "_TRANSPORT": "stdout"}, seen


def stop() -> None:
    """``systemctl stop`` lets a message end, ends sessions with 421, and leaves no failure."""
    begun = session()
    begun.mail("a@example.org")
    begun.rcpt("b@example.com")
    assert begun.docmd("data")[0] == 354
    idle_sessions = [session() for _ in range(HELD_SESSIONS)]
    systemctl("stop", "--no-block", UNIT)
    for client in idle_sessions:
        assert client.getreply()[0] == 421
        client.close()
    assert shown("ActiveState") == ["deactivating"]
    begun.send("Subject: x\r\n\r\nx\r\n.\r\n")
    assert begun.getreply()[0] == 250
    assert begun.getreply()[0] == 421
    begun.close()
    until(lambda: shown("ActiveState") == ["inactive"], "the end of the service")
    assert shown("Result", "ExecMainCode", "ExecMainStatus") == ["success", "1", "0"]
    assert systemctl("is-failed", UNIT) == "inactive"
    assert systemctl("is-active", "smtpd-fork.socket") == "active"


def stop_both() -> None:
    """A stop after an upgrade ends the sessions that the old process still has, as well."""
    old, of_old = main_pid(), session()
    kill("USR2")
    until(lambda: main_pid() != old, "another MainPID")
    of_new = session()
    systemctl("stop", UNIT)
    assert [client.getreply()[0] for client in (of_old, of_new)] == [421, 421]
    assert shown("ActiveState", "Result") == ["inactive", "success"]
    assert not Path(f"/proc/{old}").exists()


def activation() -> None:
    """A client of a stopped service has systemd start it."""
    assert shown("ActiveState") == ["inactive"]
    send()
    until(lambda: shown("ActiveState") == ["active"], "the word that it serves")


def replaced() -> None:
    """SIGKILL of one of two processes leaves the unit active, and a new process takes over."""
    pid = main_pid()
    children = Path(f"/proc/{pid}/task/{pid}/children")
    before = children.read_text().split()
    assert len(before) >= 2, before
    os.kill(int(before[-1]), SIGKILL)
    until(lambda: len(set(children.read_text().split()) - set(before)) == 1, "another process")
    send()
    assert (main_pid(), shown("ActiveState")) == (pid, ["active"])


def template() -> None:
    """Two instances serve on one socket; while one is restarted no connection is refused."""
    systemctl("stop", UNIT)
    done = systemctl("start", "smtpd-fork.target")
    assert not done, done
    instances = ["smtpd-fork@1.service", "smtpd-fork@2.service"]
    until(lambda: systemctl("is-active", *instances).split() == ["active"] * 2, "two instances")
    # As at any stop, to sessions between two commands: 421, and what comes after it.
    with sending("421", "reset by peer", "Server not connected", "Broken pipe") as results:
        for instance in instances:
            count = len(results)
            until(lambda least=count + 3: len(results) > least, "messages")  # type: ignore[misc]
            done = systemctl("restart", instance)
            assert not done, done
    assert shown("ActiveState") == ["inactive"], "the socket started the single service as well"
    for number in (1, 2):
        command = ["smtpd-fork", "status", "--control", f"/run/smtpd-fork-{number}/control"]
        status = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert "serving" in status.stdout, status
    systemctl("stop", "smtpd-fork.target")
    until(lambda: "active" not in systemctl("is-active", *instances).split(), "their end")


CHECKS = (idle, stopped, blocked, upgrade, logged, stop, stop_both, activation, replaced, template)

if __name__ == "__main__":
    {check.__name__: check for check in CHECKS}[sys.argv[1]]()
