"""Notifications: the messages to the service manager."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest
from support.daemon import LOCAL, PATIENCE, Daemon, on_both_loops, run
from support.dialogue import begin_data, last_word
from support.manager import Manager
from support.place import only_line
from support.server import until

from smtpd_fork.daemon import Notifier
from smtpd_fork.errors import ExitStatus, UsageError
from smtpd_fork.gate import Gate
from smtpd_fork.observe import Notifications, notifications

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with Manager(str(tmp_path / "notify.sock")) as manager:
        yield manager


# -- the daemon --------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_the_manager_is_notified_of_start_reload_and_stop(
    tmp_path: Path, loop: str, *, abstract: bool
) -> None:
    name = f"@smtpd-fork-{os.getpid()}-{loop}"
    address = name if abstract else str(tmp_path / "notify.sock")
    environment = {"NOTIFY_SOCKET": address}
    options = (*LOCAL, "-c", "7", "--loop", loop)
    with Manager(address) as manager:
        with Daemon(*options, cwd=tmp_path, environment=environment) as daemon:
            assert manager.wait_for_field("READY") == {"READY": "1", "STATUS": "0 of 7 sessions"}
            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            daemon.signal(signal.SIGHUP)
            reloading = manager.wait_for_field("RELOADING")
            after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            assert before <= int(reloading["MONOTONIC_USEC"]) <= after
            assert reloading["STATUS"] == "reloading: 0 of 7 sessions"
            assert manager.wait_for_field("READY")["STATUS"] == "0 of 7 sessions"
            client = daemon.smtp()
            begin_data(client)
            daemon.signal(signal.SIGTERM)
            stopping = manager.wait_for_field("STOPPING")
            assert stopping["STATUS"] == "stopping: 1 of 7 sessions"
            assert int(stopping["EXTEND_TIMEOUT_USEC"]) >= 10_000_000
            client.send(b"\r\n.\r\n")
            assert client.getreply()[0] == 250
            assert last_word(client) == (421, b"4.3.2")
            assert daemon.process.wait(PATIENCE) == 0
    assert not any("WATCHDOG" in message for message in manager.messages)
    assert not any("MAINPID" in message for message in manager.messages)


@on_both_loops
def test_the_watchdog_message_is_sent_only_while_the_event_loop_runs(
    tmp_path: Path, manager: Manager, loop: str
) -> None:
    (tmp_path / "hang.py").write_text(
        "import time\n\n\n"
        "class Hang:\n"
        "    async def handle_DATA(self, server, session, envelope):\n"
        "        time.sleep(60)\n"
    )
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"}
    options = ("-l", "127.0.0.1:0", "--handler", "hang:Hang", "--loop", loop)
    with Daemon(*options, cwd=tmp_path, environment=environment) as daemon:
        manager.wait_for_field("READY")
        for _ in range(5):
            manager.wait_for_field("WATCHDOG")
        with daemon.smtp() as client:
            begin_data(client)
            client.send(b"\r\n.\r\n")
            manager.sock.settimeout(1)  # five times the timeout of the watchdog
            with pytest.raises(TimeoutError):
                while True:
                    manager.sock.recv(65536)
            daemon.stop(signal.SIGKILL)
            client.close()


def test_a_detached_daemon_sends_its_process_id(tmp_path: Path, manager: Manager) -> None:
    options = (*LOCAL, "--detach", "--pid-file", "daemon.pid", "--log-to", "log")
    ended = run(*options, cwd=tmp_path, environment={"NOTIFY_SOCKET": manager.address})
    assert ended.returncode == 0, ended.stderr
    pid = int((tmp_path / "daemon.pid").read_text())
    assert int(manager.wait_for_field("READY")["MAINPID"]) == pid
    os.kill(pid, signal.SIGTERM)
    manager.wait_for_field("STOPPING")


def test_a_failed_start_does_not_send_ready(tmp_path: Path, manager: Manager) -> None:
    environment = {"NOTIFY_SOCKET": manager.address}
    assert run("--handler", "no:such", cwd=tmp_path, environment=environment).returncode
    manager.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.sock.recv(1)


def test_a_missing_manager_is_logged_once_and_does_not_affect_mail(tmp_path: Path) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "20000"}
    with Daemon(*LOCAL, cwd=tmp_path, environment=environment) as daemon:
        daemon.wait_for("WARNING cannot notify the service manager: No such file or directory")
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("configuration reloaded")
        daemon.deliver()
        assert daemon.stop() == 0
        assert daemon.log.count("cannot notify the service manager") == 1


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"NOTIFY_SOCKET": "run/notify"}, "NOTIFY_SOCKET 'run/notify': expected an absolute path"),
        ({"NOTIFY_SOCKET": "@"}, "NOTIFY_SOCKET '@': expected"),
        ({"NOTIFY_SOCKET": "/" + "x" * 200}, "too long for a unix socket"),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "soon"}, "WATCHDOG_USEC 'soon': expected"),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "0"}, "WATCHDOG_USEC '0': expected"),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "9" * 5000}, "WATCHDOG_USEC"),
        ({"WATCHDOG_USEC": "1", "WATCHDOG_PID": "me"}, "WATCHDOG_PID 'me': expected"),
    ],
)
def test_invalid_variables_are_an_error_in_one_line(
    tmp_path: Path, environment: dict[str, str], says: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        Notifier.from_environment(dict(environment))
    ended = run(*LOCAL, cwd=tmp_path, environment=environment)
    assert ended.returncode == ExitStatus.USAGE
    assert says in only_line(ended)


def test_the_watchdog_of_another_process_is_ignored() -> None:
    environment = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}
    notifier = Notifier.from_environment(environment)
    assert notifier is not None
    assert notifier.watchdog is None
    assert environment == {}
    environment = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1500000"}
    environment["WATCHDOG_PID"] = str(os.getpid())
    mine = Notifier.from_environment(environment)
    assert mine is not None
    assert mine.watchdog == 1.5


# -- in an event loop --------------------------------------------------------------------------


def receives(manager: Manager, messages: list[bytes]) -> bool:
    """Read the next message to the manager, if there is one; return whether there was."""
    try:
        messages.append(manager.sock.recv(4096, socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False
    return True


async def test_the_status_is_sent_only_when_it_has_changed(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "STATUS_SECONDS", 0.01)
    gate = Gate(limit_connections=3)
    service = Notifications(Notifier(manager.address), gate)
    await service.serving()
    messages = [manager.sock.recv(4096)]
    ticket = gate.admit("192.0.2.1")

    await until(lambda: receives(manager, messages))
    ticket.release()  # type: ignore[union-attr]
    await until(lambda: receives(manager, messages))
    await service.stop()
    assert messages == [
        b"READY=1\nSTATUS=0 of 3 sessions",
        b"STATUS=1 of 3 sessions",
        b"STATUS=0 of 3 sessions",
    ]


async def test_fields_that_a_slow_manager_does_not_accept_are_sent_later(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "STATUS_SECONDS", 0.01)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as flood:
        flood.setblocking(False)
        sent = 0
        with pytest.raises(BlockingIOError):
            while True:
                flood.sendto(b"X=1", manager.address)
                sent += 1
    service = Notifications(Notifier(manager.address), Gate())
    await service.serving()
    for _ in range(sent):
        assert manager.sock.recv(4096) == b"X=1"
    messages: list[bytes] = []
    await until(lambda: receives(manager, messages))
    await service.stop()
    assert messages[0].startswith(b"READY=1\nSTATUS=")


async def test_after_an_upgrade_only_the_new_process_id_is_sent(manager: Manager) -> None:
    service = Notifications(Notifier(manager.address, watchdog=0.02), Gate())
    await service.serving()
    await service.handed_over(4711)
    assert manager.wait_for_field("MAINPID")["MAINPID"] == "4711"
    assert service._watchdog_timer is None
    assert service._status_timer is None


async def test_a_stop_requests_more_time_while_the_event_loop_runs(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "STATUS_SECONDS", 0.01)
    service = Notifications(Notifier(manager.address, watchdog=0.02), Gate())
    await service.serving()
    await service.stopping()
    messages: list[bytes] = []
    while sum(b"EXTEND_TIMEOUT_USEC=" in message for message in messages) < 3:
        await until(lambda: receives(manager, messages))
    while not messages[-1].startswith(b"WATCHDOG=1"):
        await until(lambda: receives(manager, messages))  # the watchdog is active until the end
    await service.stop()
    assert sum(b"STOPPING=1" in message for message in messages) == 1
