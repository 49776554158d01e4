"""--processes: a supervisor and its processes, seen from outside."""

from __future__ import annotations

import os
import re
import signal
import smtplib
import socket
import sys
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest
from support.control import CONTROL, ask, command, says
from support.daemon import (
    LOCAL,
    PATIENCE,
    Daemon,
    Detached,
    Process,
    is_alive,
    on_both_loops,
    run,
    until,
    wait_until_gone,
)
from support.place import only_line
from support.upgrades import Load, Successors

from smtpd_fork.errors import ExitStatus

if TYPE_CHECKING:
    from pathlib import Path

TWO = (*LOCAL, "--processes", "2")
SERVES = r"process (\d) of \d serves, pid (\d+)$"


def pids(log: str, of: int = 2) -> list[int]:
    """Return the pids of the processes that ever served: the first ones by number, later ones."""
    found = re.findall(SERVES, log, re.MULTILINE)
    return [int(pid) for _, pid in (*sorted(found[:of]), *found[of:])]


def children(daemon: Daemon, count: int = 2) -> list[int]:
    """Return the pids of the processes, once *count* have served."""
    until(lambda: len(pids(daemon.log)) >= count, f"{count} serve")
    return pids(daemon.log)


# -- start and end -----------------------------------------------------------------------------


@on_both_loops
def test_the_supervisor_has_pid_file_and_paths_and_its_processes_serve(
    tmp_path: Path, loop: str
) -> None:
    pid_file, path = tmp_path / "daemon.pid", tmp_path / "smtp.sock"
    options = (*TWO, "-l", f"unix:{path}", "--pid-file", str(pid_file), "--loop", loop, *CONTROL)
    with Daemon(*options, cwd=tmp_path) as daemon:
        ours = children(daemon)
        assert pid_file.read_text() == f"{daemon.process.pid}\n"
        assert {Process(pid).parent for pid in ours} == {daemon.process.pid}
        daemon.deliver()
        assert f"pid {daemon.process.pid}" in says(tmp_path, "status")
        assert all(f"smtpd-fork[{pid}]: INFO" in daemon.log for pid in ours)
        assert daemon.stop() == 0
        assert not pid_file.exists()
        assert not path.exists()
        assert not any(map(is_alive, ours))


def test_a_session_that_is_cut_is_the_exit_status(tmp_path: Path) -> None:
    with Daemon(*TWO, "--shutdown-timeout", "0", cwd=tmp_path) as daemon:
        client = daemon.smtp()
        client.ehlo()
        client.mail("a@example.com")
        client.rcpt("b@example.com")
        client.putcmd("data")
        assert client.getreply()[0] == 354
        assert daemon.stop() == ExitStatus.CUT
        client.close()


def test_a_process_that_cannot_start_is_the_error_of_the_start(tmp_path: Path) -> None:
    options = ("-l", "127.0.0.1:0", "--processes", "2", "--handler", "nowhere:Handler")
    ended = run(*options, cwd=tmp_path)
    assert ended.returncode == ExitStatus.CONFIG
    assert "nowhere" in only_line(ended)
    alone = run("-l", "127.0.0.1:0", "--handler", "nowhere:Handler", cwd=tmp_path)
    assert only_line(ended) == only_line(alone)
    detached = run(*options, "--detach", "--log-to", "log", cwd=tmp_path)
    assert detached.returncode == ExitStatus.CONFIG
    assert only_line(detached) == only_line(alone)


def test_it_detaches_once_all_serve(tmp_path: Path) -> None:
    options = ("-l", "127.0.0.1:0", "--processes", "2", "--handler", "maildir:box")
    with Detached(*options, "--pid-file", "pid", cwd=tmp_path) as daemon:
        until(lambda: len(pids(daemon.text)) == 2, "the log is written")
        ours = pids(daemon.text)
        assert (tmp_path / "pid").read_text() == f"{daemon.pid}\n"
        assert {Process(pid).folder for pid in (*ours, daemon.pid)} == {"/"}
        with daemon.smtp() as client:
            client.sendmail("a@example.com", ["b@example.com"], "Subject: hi\r\n\r\nhello\r\n")
        assert len(list((tmp_path / "box" / "new").iterdir())) == 1
        daemon.stop()
        until(lambda: not any(map(is_alive, ours)), "they have ended")


def test_all_of_them_drop_privileges(public: Path, command_for_nobody: list[str]) -> None:
    options = (*TWO, "--user", "nobody")
    with Daemon(*options, cwd=public, command=command_for_nobody) as daemon:
        found = [Process(pid).status["Uid"][0] for pid in (*children(daemon), daemon.process.pid)]
        assert len(set(found)) == 1
        assert found[0] != "0"
        os.kill(children(daemon)[0], signal.SIGKILL)
        assert Process(children(daemon, 3)[2]).status["Uid"][0] == found[0]


# -- replacement -------------------------------------------------------------------------------


def test_a_killed_process_is_replaced_and_no_other_client_notices(tmp_path: Path) -> None:
    with Daemon(*TWO, "-c", "2", *CONTROL, cwd=tmp_path) as daemon:
        first, second = children(daemon)
        inside = [daemon.smtp(), daemon.smtp()]
        address = ("127.0.0.1", daemon.port)
        waiting = [socket.create_connection(address, timeout=PATIENCE) for _ in range(4)]
        says(tmp_path, "deny", "192.0.2.0/24")
        os.kill(first, signal.SIGKILL)
        daemon.wait_for(rf"process 1 \(pid {first}\) ended by SIGKILL: starting another one")
        lost = 0
        for client in inside:
            try:
                assert client.noop()[0] == 250
            except (OSError, EOFError):
                lost += 1
            client.close()
        assert lost <= 1, "those of the other process stay"
        third = children(daemon, 3)[2]
        assert ask(tmp_path, "denials")["denials"][0]["network"] == "192.0.2.0/24"
        os.kill(second, signal.SIGKILL)
        for sock in waiting:
            assert sock.recv(4) == b"220 ", "none in the backlog was reset"
            sock.close()
        assert is_alive(third)


@pytest.mark.peers
def test_one_that_crashes_again_and_again_is_started_at_growing_intervals(tmp_path: Path) -> None:
    (tmp_path / "crashing.py").write_text(CRASHING)
    options = ("-l", "127.0.0.1:0", "--processes", "2", "--handler", "crashing:Handler")
    with Daemon(*options, cwd=tmp_path) as daemon:
        (tmp_path / "crash").touch()
        os.kill(children(daemon)[0], signal.SIGKILL)
        daemon.wait_for(r"process 1 cannot start: .*no more .*; trying again in 0.2 s")
        daemon.wait_for(r"process 1 cannot start: .*no more .*; trying again in 0.4 s")
        daemon.deliver()
        (tmp_path / "crash").unlink()
        children(daemon, 3)


CRASHING = """
import os

if os.path.exists("crash"):
    raise ValueError("no more")


class Handler:
    async def handle_DATA(self, server, session, envelope):
        return "250 taken"
"""


def test_processes_whose_supervisor_was_killed_end_with_their_last_session(tmp_path: Path) -> None:
    with Daemon(*TWO, cwd=tmp_path) as daemon:
        ours = children(daemon)
        client = daemon.smtp()
        daemon.process.kill()
        daemon.wait_for("the supervisor has ended: draining")
        assert client.noop()[0] == 250
        client.quit()
        for pid in ours:
            wait_until_gone(pid)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", daemon.port))


# -- under load --------------------------------------------------------------------------------

COUNTING = """
import os

log = os.open("taken", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


class Handler:
    async def handle_DATA(self, server, session, envelope):
        os.write(log, b"%d\\n" % os.getpid())
        return "250 taken"
"""


@pytest.mark.peers
def test_reloads_and_upgrades_lose_no_message_and_refuse_no_connection(tmp_path: Path) -> None:
    (tmp_path / "counting.py").write_text(COUNTING)
    taken = tmp_path / "taken"
    options = ("-l", "127.0.0.1:0", "-m", "0", "--processes", "2", "--handler", "counting:Handler")

    def count() -> int:
        return taken.read_text().count("\n") if taken.exists() else 0

    with Daemon(*options, "--pid-file", "pid", cwd=tmp_path) as daemon:
        with Load(daemon.port) as load, Successors(daemon) as successors:
            for _ in range(2):
                before = count()
                until(lambda least=before + 200: count() >= least, "mail comes in")  # type: ignore[misc]
                pid = int((tmp_path / "pid").read_text())
                os.kill(pid, signal.SIGHUP)
                daemon.wait_for(rf"\[{pid}\]: INFO configuration reloaded")
                successors.upgrade()
            load.finish()
        assert load.faults == []
        assert count() == load.sent
        assert len(set(taken.read_text().split())) >= 4, "old ones and new ones had their part"
        assert "Traceback" not in daemon.log
        assert not re.findall(r".*(?:WARNING refused|ERROR).*", daemon.log)


@pytest.mark.peers
def test_killed_processes_lose_their_sessions_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "counting.py").write_text(COUNTING)
    options = ("-l", "127.0.0.1:0", "-m", "0", "--processes", "2", "--handler", "counting:Handler")
    outcomes: list[str] = []
    over = threading.Event()

    def send(port: int) -> None:
        while not over.is_set():
            try:
                with smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE) as client:
                    client.sendmail("a@example.com", ["b@example.com"], "Subject: hi\r\n\r\nhi\r\n")
                outcomes.append("accepted")
            except (smtplib.SMTPServerDisconnected, ConnectionResetError):
                outcomes.append("lost")
            except OSError as error:
                outcomes.append(repr(error))

    with Daemon(*options, *CONTROL, cwd=tmp_path) as daemon:
        senders = [threading.Thread(target=send, args=(daemon.port,)) for _ in range(6)]
        for sender in senders:
            sender.start()
        for number in range(6):
            count = len(outcomes)
            until(lambda least=count + 50: len(outcomes) > least, "mail comes in")  # type: ignore[misc]
            processes = ask(tmp_path, "status")["processes"]
            os.kill(processes[number % len(processes)]["pid"], signal.SIGKILL)
            until(lambda: len(ask(tmp_path, "status")["processes"]) == 2, "there are two again")
        over.set()
        for sender in senders:
            sender.join()
        taken = (tmp_path / "taken").read_text().count("\n")
        accepted, lost = outcomes.count("accepted"), outcomes.count("lost")
        assert accepted + lost == len(outcomes), set(outcomes)
        assert lost <= 6 * len(senders)
        assert accepted <= taken <= accepted + lost


@pytest.mark.peers
def test_a_drain_under_load_ends_all_sessions_in_peace(tmp_path: Path) -> None:
    with Daemon(*TWO, *CONTROL, cwd=tmp_path) as daemon:
        clients = [daemon.smtp() for _ in range(10)]
        assert "draining" in says(tmp_path, "drain")
        daemon.wait_for("draining: .* open")
        for client in clients:
            client.sendmail("a@example.com", ["b@example.com"], "Subject: hi\r\n\r\nhello\r\n")
            client.quit()
        assert daemon.process.wait(PATIENCE) == 0


# -- limits and control ------------------------------------------------------------------------


@pytest.mark.peers
def test_the_connections_of_all_are_divided_exactly(tmp_path: Path) -> None:
    options = (*LOCAL, "--processes", "4", "-m", "0", "-c", "102", *CONTROL)
    with Daemon(*options, cwd=tmp_path) as daemon:
        address = ("127.0.0.1", daemon.port)
        clients = [socket.create_connection(address, timeout=PATIENCE) for _ in range(1000)]
        until(lambda: ask(tmp_path, "status")["sessions"] == 102, "all are in use")
        limits = [each["limit"] for each in ask(tmp_path, "status")["processes"]]
        assert limits == [26, 26, 25, 25]
        for _ in range(3):
            assert ask(tmp_path, "status")["sessions"] == 102
            time.sleep(0.05)
        greeted = 0
        for client in clients:
            client.setblocking(False)
            with suppress(BlockingIOError):
                greeted += client.recv(4) == b"220 "
        assert greeted == 102
        for client in clients:
            client.close()
        until(lambda: ask(tmp_path, "status")["sessions"] == 0, "all have gone")


@pytest.mark.parametrize("how", ["refuse", "defer:1"])
@pytest.mark.peers
def test_no_client_is_refused_while_one_process_has_a_slot(tmp_path: Path, how: str) -> None:
    options = (*TWO, "-c", "10", "-m", "0", "--when-full", how, *CONTROL)
    with Daemon(*options, cwd=tmp_path) as daemon, ExitStack() as clients:
        address = ("127.0.0.1", daemon.port)

        def connect(count: int) -> list[bytes]:
            socks = [socket.create_connection(address, timeout=PATIENCE) for _ in range(count)]
            return [clients.enter_context(sock).recv(4) for sock in socks]

        for _ in range(3):
            assert connect(10) == [b"220 "] * 10, "all slots are used before one is refused"
            assert connect(3) == [b"421 "] * 3
            clients.close()
            until(lambda: ask(tmp_path, "status")["sessions"] == 0, "all have gone")


def test_one_control_socket_answers_for_all(tmp_path: Path) -> None:
    config = tmp_path / "conf.toml"
    config.write_text('hostname = "one.example"\n')
    options = (*TWO, "-c", "11", "--config", str(config), *CONTROL)
    with Daemon(*options, cwd=tmp_path) as daemon:
        clients = [daemon.smtp(source=f"127.0.1.{n}") for n in range(1, 12)]
        status = ask(tmp_path, "status")
        assert (status["sessions"], status["limit"], status["clients"]) == (11, 11, 11)
        assert [each["limit"] for each in status["processes"]] == [6, 5]
        assert "process" in says(tmp_path, "status")

        page = ask(tmp_path, "sessions", limit=4)
        found = [each["id"] for each in page["sessions"]]
        while page["next"]:
            page = ask(tmp_path, "sessions", limit=4, after=page["next"])
            found += [each["id"] for each in page["sessions"]]
        assert len(set(found)) == len(found) == 11
        assert "since" not in ask(tmp_path, "sessions")["sessions"][0]

        assert ask(tmp_path, "kick", id=found[0])["kicked"] == 1
        until(lambda: ask(tmp_path, "status")["sessions"] == 10, "it is gone")
        assert ask(tmp_path, "kick", id="nobody")["fault"] == "unknown"
        assert ask(tmp_path, "kick", client="127.0.1.0/24")["kicked"] == 10
        until(lambda: ask(tmp_path, "status")["sessions"] == 0, "they are gone")

        assert ask(tmp_path, "deny", network="127.0.2.0/24")["ok"]
        assert ask(tmp_path, "pause")["state"] == "paused"
        assert ask(tmp_path, "resume")["state"] == "serving"
        refusals = set()
        for _ in range(20):
            with socket.create_connection(
                ("127.0.0.1", daemon.port), PATIENCE, ("127.0.2.1", 0)
            ) as sock:
                assert sock.recv(100).startswith(b"554 5.7.1 one.example")
            refusals |= set(re.findall(r"refused .*\[([\w-]+)\]$", daemon.log, re.MULTILINE))
        status = ask(tmp_path, "status")
        assert (status["refused"], status["denied"]) == (20, 1)
        assert ask(tmp_path, "undeny", network="127.0.2.0/24")["ok"]
        for ident in refusals:
            assert ask(tmp_path, "explain", id=ident)["rule"] == "deny"
        assert ask(tmp_path, "explain", id="none-1")["fault"] == "unknown"

        changed = ask(tmp_path, "limits", set={"limit_connections": ["7"]})
        assert changed["limits"]["limit_connections"] == 7
        assert [each["limit"] for each in ask(tmp_path, "status")["processes"]] == [4, 3]
        refused = ask(tmp_path, "limits", set={"limit_connections": ["1"]})
        assert "each of 2 processes needs a connection" in refused["text"]

        config.write_text('hostname = "two.example"\n')
        assert "hostname one.example -> two.example" in says(tmp_path, "reload")
        assert [each["limit"] for each in ask(tmp_path, "status")["processes"]] == [6, 5]
        for _ in range(4):
            with daemon.smtp() as client:
                assert b"two.example" in client.ehlo()[1]
        for wrong in ('[gate]\nreserve = "x"\n', '[tls]\ncert = "nowhere.pem"\n'):
            config.write_text(f'hostname = "two.example"\n{wrong}')
            failed = command(tmp_path, "reload")
            assert failed.returncode == ExitStatus.CONFIG
            assert "conf.toml, line 3" in failed.stderr
        for client in clients:
            client.close()


@pytest.mark.peers
def test_a_process_whose_event_loop_hangs_is_killed_and_replaced(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from smtpd_fork.cli import main\n"
        "from smtpd_fork.supervisor import serving_process\n"
        "serving_process.PING_SECONDS = serving_process.STUCK_SECONDS = 0.5\n"
        "sys.exit(main())\n"
    )
    with Daemon(*TWO, cwd=tmp_path, command=[sys.executable, "-c", script]) as daemon:
        first = children(daemon)[0]
        os.kill(first, signal.SIGSTOP)
        daemon.wait_for(rf"process 1 \(pid {first}\) has not answered for 0.5 s: killed")
        children(daemon, 3)
        daemon.deliver()


def test_a_stop_while_another_process_starts_ends_that_as_well(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    options = ("-l", "127.0.0.1:0", "--processes", "2", "--handler", "slow:Handler")
    with Daemon(*options, cwd=tmp_path) as daemon:
        (tmp_path / "wait").touch()
        os.kill(children(daemon)[0], signal.SIGKILL)
        until((tmp_path / "starts").exists, "another one starts")
        assert daemon.stop() == 0
        assert not is_alive(int((tmp_path / "starts").read_text()))


SLOW = """
import os
import pathlib
import time

if os.path.exists("wait"):
    pathlib.Path("new").write_text(str(os.getpid()))
    os.rename("new", "starts")
    time.sleep(60)


class Handler:
    async def handle_DATA(self, server, session, envelope):
        return "250 taken"
"""


@pytest.mark.peers
def test_an_upgrade_changes_the_number_of_processes_and_keeps_what_is_denied(
    tmp_path: Path,
) -> None:
    config = tmp_path / "conf.toml"
    config.write_text("processes = 1\n")
    options = (*LOCAL, "--config", str(config), "--pid-file", "pid", *CONTROL)
    with Daemon(*options, cwd=tmp_path) as daemon, Successors(daemon) as successors:
        says(tmp_path, "deny", "127.0.2.0/24")
        for number in (3, 1, 2):
            config.write_text(f"processes = {number}\n")
            new = successors.upgrade()
            assert (tmp_path / "pid").read_text() == f"{new}\n"
            status = ask(tmp_path, "status")
            assert (status["pid"], status["denied"]) == (new, 1)
            assert len(status.get("processes", [])) == (number if number > 1 else 0)
            for _ in range(4):
                with socket.create_connection(
                    ("127.0.0.1", daemon.port), PATIENCE, ("127.0.2.1", 0)
                ) as sock:
                    assert sock.recv(4) == b"554 "
            daemon.deliver()
