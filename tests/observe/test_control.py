"""The commands of an administrator, with a daemon that runs."""

from __future__ import annotations

import json
import os
import re
import signal
import smtplib
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from support.control import CONTROL, SOCKET, ask, command, connect, line, says
from support.daemon import COMMAND, LOCAL, PATIENCE, Daemon, messages, run, until
from support.dialogue import begin_data, is_refused, last_word
from support.page import read
from support.place import only_line

from smtpd_fork.cli.command import SUBCOMMANDS
from smtpd_fork.cli.control import CONTROL_COMMANDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.tls import Certificates

PAGE = "docs/control.md"

ALL = ("status", "sessions", "kick", "limits", "pause", "resume", "drain", "explain")


@pytest.fixture(params=["uvloop", "asyncio"])
def daemon(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    with Daemon(*LOCAL, *CONTROL, "--loop", request.param, cwd=tmp_path) as running:
        yield running
        if running.process.poll() is None:
            assert running.stop() == 0
        assert "Traceback" not in running.log
        assert not (tmp_path / SOCKET).exists()


def sessions(folder: Path) -> list[dict[str, str]]:
    return [json.loads(each) for each in says(folder, "sessions", "--json").splitlines()]


def test_the_status_tells_what_is(daemon: Daemon, tmp_path: Path) -> None:
    with daemon.smtp() as client:
        client.ehlo("client.example")
        text = says(tmp_path, "status")
        told = json.loads(says(tmp_path, "status", "--json"))
        client.quit()
    pid = daemon.process.pid
    assert re.match(rf"smtpd-fork \S+ on \S+, pid {pid}: serving, for \d+s\n", text)
    assert re.search(r"^sessions +1 of 1000 \(command 1\)$", text, re.MULTILINE)
    assert re.search(r"^sources +1 \(127\.0\.0\.1 1\)$", text, re.MULTILINE)
    assert f"127.0.0.1:{daemon.port}" in text
    assert (told["sessions"], told["limit"], told["phases"]) == (1, 1000, {"command": 1})
    assert (told["admitted"], told["state"], told["pid"]) == (1, "serving", pid)
    assert told["listeners"] == [f"127.0.0.1:{daemon.port}"]


def test_the_variable_names_the_socket_for_both_sides(tmp_path: Path) -> None:
    environment = {"SMTPD_FORK_CONTROL": SOCKET}
    with Daemon(*LOCAL, cwd=tmp_path, environment=environment):
        ended = run("status", cwd=tmp_path, environment=environment)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert "serving" in ended.stdout


def test_sessions_are_listed_with_what_they_do(daemon: Daemon, tmp_path: Path) -> None:
    with daemon.smtp() as one, daemon.smtp() as other:
        one.ehlo("one.example")
        begin_data(other)
        first, second = sessions(tmp_path)
        table = says(tmp_path, "sessions").splitlines()
        other.send(b"\r\n.\r\n")
        assert other.getreply()[0] == 250
    assert (first["helo"], first["phase"], first["source"]) == (
        "one.example",
        "command",
        "127.0.0.1",
    )
    assert second["phase"] == "data"
    assert table[0].split() == ["ID", "AGE", "PHASE", "TLS", "MSGS", "PEER", "HELO"]
    assert table[1].split()[0] == first["id"]
    assert table[1].endswith("one.example")
    assert len(table) == 3


def test_a_session_is_kicked_by_its_id(daemon: Daemon, tmp_path: Path) -> None:
    with daemon.smtp() as other:
        client = daemon.smtp()
        client.ehlo("kicked.example")
        (told,) = [each for each in sessions(tmp_path) if each["helo"] == "kicked.example"]
        assert says(tmp_path, "kick", told["id"]) == "1 session ended\n"
        assert last_word(client) == (421, b"4.3.2")
        assert other.noop()[0] == 250
        ended = command(tmp_path, "kick", told["id"])
        assert ended.returncode == os.EX_DATAERR
        assert only_line(ended) == f"smtpd-fork: no session {told['id']}\n"
    assert f"kick {told['id']}" in daemon.log


@pytest.mark.parametrize("source", ["127.0.0.2", "127.0.0.2/31"])
def test_all_of_a_source_are_kicked(daemon: Daemon, tmp_path: Path, source: str) -> None:
    with daemon.smtp() as other:
        clients = [daemon.smtp(source="127.0.0.2") for _ in range(3)]
        assert says(tmp_path, "kick", "--source", source) == "3 sessions ended\n"
        for client in clients:
            assert last_word(client) == (421, b"4.3.2")
        assert says(tmp_path, "kick", "--source", source) == "0 sessions ended\n"
        assert other.noop()[0] == 250


def test_a_message_that_is_being_written_survives_a_kick(tmp_path: Path) -> None:
    """The handler stops in the middle of a message until the kick is through."""
    os.mkfifo(tmp_path / "go")
    (tmp_path / "slow.py").write_text(
        "import asyncio, pathlib\n\n\n"
        "class Slow:\n"
        "    async def handle_DATA(self, server, session, envelope):\n"
        "        await asyncio.to_thread(pathlib.Path('go').read_text)\n"
        "        pathlib.Path('taken').write_bytes(envelope.content)\n"
        "        return '250 2.0.0 Ok'\n"
    )
    options = ("-l", "127.0.0.1:0", "--handler", "slow:Slow")
    environment = {"PYTHONPATH": str(tmp_path)}
    with Daemon(*options, *CONTROL, cwd=tmp_path, environment=environment) as daemon:
        client = daemon.smtp()
        begin_data(client)
        client.send(b"\r\n.\r\n")
        until(lambda: ask(tmp_path, "status")["phases"] == {"handler": 1}, "it has the message")
        assert says(tmp_path, "kick", "--source", "127.0.0.1") == "1 session ended\n"
        (tmp_path / "go").write_text("go")
        assert client.getreply()[0] == 250
        assert last_word(client) == (421, b"4.3.2")
        assert (tmp_path / "taken").read_bytes().endswith(b"and half\r\n")
        until(lambda: ask(tmp_path, "status")["sessions"] == 0, "the place is given back")


IN_DATA = b"EHLO a.example\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n"
PROXY = ("--proxy-trust", "127.0.0.1", "--proxy-timeout", "60s")
PHASES = {
    "greet-pause": ("127.0.0.1:0", ("--greet-pause", "60s"), b""),
    "proxy-header": ("smtp+proxy:127.0.0.1:0", PROXY, b"PROXY"),
    "handshake": ("smtps:127.0.0.1:0", ("{tls}",), b""),
    "starttls": ("127.0.0.1:0", ("{tls}",), b"EHLO a.example\r\nSTARTTLS\r\n"),
    "command": ("127.0.0.1:0", (), b"EHLO a.example\r\n"),
    "data": ("127.0.0.1:0", (), IN_DATA),
}
"""Where a client is: on which listener, with which options, and what it says."""


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("where", PHASES)
def test_a_kick_reaches_a_client_wherever_it_is(
    tmp_path: Path, certificates: Certificates, where: str, loop: str
) -> None:
    listen, more, words = PHASES[where]
    tls = ("--tls-cert", str(certificates.cert), "--tls-key", str(certificates.key))
    options = ("-l", listen, "--handler", "discard", "--loop", loop, *CONTROL)
    with Daemon(*options, *(tls if more == ("{tls}",) else more), cwd=tmp_path) as daemon:
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE) as client:
            client.sendall(words)
            phase = where.replace("starttls", "handshake")
            until(lambda: ask(tmp_path, "status")["phases"] == {phase: 1}, phase)
            (told,) = ask(tmp_path, "sessions")["sessions"]
            assert says(tmp_path, "kick", told["id"]) == "1 session ended\n"
            heard = b""
            while chunk := client.recv(4096):
                heard += chunk
        last = heard.splitlines()[-1:]
        if phase == "handshake":
            assert not any(line.startswith(b"421") for line in last)
        else:
            assert re.match(rb"421 4\.3\.2 \S+ Ended by the administrator", last[0])
        until(lambda: ask(tmp_path, "status")["sessions"] == 0, "the place is given back")
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log


def test_limits_are_shown_changed_and_back_after_a_reload(daemon: Daemon, tmp_path: Path) -> None:
    assert re.search(r"^max_from_ip +50$", says(tmp_path, "limits"), re.MULTILINE)
    text = says(
        tmp_path, "limits", "limit_connections=200", "max-from-ip=1", "rate=9/m", "rate=99/h"
    )
    assert re.search(r"^limit_connections +200  \(changed\)$", text, re.MULTILINE)
    assert re.search(r"^rate +9/m 99/h  \(changed\)$", text, re.MULTILINE)
    assert text.endswith("what is changed holds until the next reload or restart\n")
    with daemon.smtp():
        with pytest.raises(smtplib.SMTPConnectError, match="421"):
            daemon.smtp()
    assert re.search(r"^rate +-$", says(tmp_path, "limits", "rate="), re.MULTILINE)
    told = json.loads(says(tmp_path, "limits", "--json"))
    assert told["changed"] == ["limit_connections", "max_from_ip"]
    assert ask(tmp_path, "status")["limits_changed"] == told["changed"]
    daemon.signal(signal.SIGHUP)
    daemon.wait_for("the settings were read again")
    told = json.loads(says(tmp_path, "limits", "--json"))
    assert (told["changed"], told["until"], told["limits"]["max_from_ip"]) == ([], None, 50)


def test_a_reload_that_fails_leaves_the_changes(tmp_path: Path) -> None:
    (tmp_path / "bad.list").write_text("192.0.2.1\n")
    with Daemon(*LOCAL, *CONTROL, "--deny", "./bad.list", cwd=tmp_path) as daemon:
        says(tmp_path, "limits", "max_from_ip=7")
        (tmp_path / "bad.list").write_text("nonsense\n")
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("all stays as it was")
        told = ask(tmp_path, "limits")
        assert (told["changed"], told["limits"]["max_from_ip"]) == (["max_from_ip"], 7)
        # Nor is the broken list in the way of a change that has nothing to do with it.
        assert ask(tmp_path, "limits", set={"max_from_ip": ["8"]})["ok"]
        assert not ask(tmp_path, "limits", set={"allow": ["192.0.2.7"]})["ok"]
        assert ask(tmp_path, "limits")["limits"]["max_from_ip"] == 8


def test_a_network_can_be_denied_at_run_time_and_rates_keep_their_state(tmp_path: Path) -> None:
    with Daemon(*LOCAL, *CONTROL, "--rate", "1/h", cwd=tmp_path) as daemon:
        daemon.smtp().close()
        says(tmp_path, "limits", "deny=127.0.0.2/32")
        with pytest.raises(smtplib.SMTPConnectError, match="554"):
            daemon.smtp(source="127.0.0.2")
        with pytest.raises(smtplib.SMTPConnectError, match="421"):
            daemon.smtp()  # its one of the hour was used up before


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("max_from_ip=-1",), "max_from_ip '-1': expected"),
        (("max_from_ip=1", "max_from_ip=2"), "one value is expected"),
        (("max_from_ip=",), "one value is expected"),
        (("hostname=x",), "no limit that can be changed"),
        (("max_loop_lag=1s",), "no limit that can be changed"),
        (("rate=9/x",), "rate '9/x'"),
        (("deny=/none/list",), "deny '/none/list'"),
        (("reserve=1000", "exempt=192.0.2.1"), "must be less than limit_connections"),
        (("reserve=1",), "nobody is exempt"),
        (("max_from_ip",), "write NAME=VALUE"),
        (("=1",), "write NAME=VALUE"),
    ],
)
def test_a_limit_that_cannot_be_had_changes_nothing(
    place_with_daemon: Path, words: tuple[str, ...], reason: str
) -> None:
    ended = command(place_with_daemon, "limits", "limit_connections=7", *words)
    assert ended.returncode == os.EX_USAGE
    assert reason in only_line(ended)
    told = ask(place_with_daemon, "limits")
    assert (told["changed"], told["limits"]["limit_connections"]) == ([], 1000)


@pytest.fixture(scope="module")
def place_with_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A daemon for many tests, none of which changes it."""
    folder = tmp_path_factory.mktemp("control")
    with Daemon(*LOCAL, *CONTROL, cwd=folder):
        yield folder


def test_who_may_have_no_more_files_is_warned(tmp_path: Path) -> None:
    few = ["sh", "-c", 'ulimit -n 500; exec "$0" "$@"', *COMMAND]
    with Daemon(*LOCAL, *CONTROL, cwd=tmp_path, command=few):
        assert "(RLIMIT_NOFILE)" in says(tmp_path, "limits", "limit_connections=5000")


def test_a_paused_daemon_lets_nobody_in_until_it_goes_on(daemon: Daemon, tmp_path: Path) -> None:
    with daemon.smtp() as inside:
        assert says(tmp_path, "pause") == "paused\n"
        assert "paused" in says(tmp_path, "status")
        assert inside.noop()[0] == 250
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE) as waiting:
            daemon.wait_for("clients wait in the backlog")
            assert ask(tmp_path, "status")["sessions"] == 1
            assert says(tmp_path, "resume") == "serving\n"
            assert waiting.recv(4) == b"220 "


def test_a_drain_ends_the_daemon_with_its_last_session(daemon: Daemon, tmp_path: Path) -> None:
    with daemon.smtp() as client:
        assert says(tmp_path, "drain") == "draining: 1 sessions left\n"
        daemon.wait_for("draining: 1 sessions")
        assert is_refused(daemon.port)
        assert "draining" in says(tmp_path, "status")
        assert says(tmp_path, "drain") == "draining: 1 sessions left\n"
        client.sendmail("a@example.com", ["b@example.com"], "Subject: hi\r\n\r\nhello\r\n")
        assert client.quit()[0] == 221
    assert daemon.process.wait(PATIENCE) == 0
    assert daemon.log.count("control: uid") == 1


def test_a_drain_whose_time_is_over_is_a_stop(daemon: Daemon, tmp_path: Path) -> None:
    client = daemon.smtp()
    says(tmp_path, "drain", "--timeout", "100ms")
    assert last_word(client) == (421, b"4.3.2")
    assert daemon.process.wait(PATIENCE) == 0
    assert "the time to drain is over" in daemon.log


def test_a_signal_makes_a_stop_of_a_drain(daemon: Daemon, tmp_path: Path) -> None:
    client = daemon.smtp()
    says(tmp_path, "drain")
    daemon.signal(signal.SIGTERM)
    assert last_word(client) == (421, b"4.3.2")
    assert daemon.process.wait(PATIENCE) == 0


def test_a_drain_may_be_waited_for(daemon: Daemon, tmp_path: Path) -> None:
    assert says(tmp_path, "drain", "--wait").splitlines() == ["draining: 0 sessions left", "ended"]
    assert daemon.process.wait(PATIENCE) == 0


def test_a_refusal_is_explained(tmp_path: Path) -> None:
    with Daemon(*LOCAL, *CONTROL, "-m", "1", cwd=tmp_path) as daemon, daemon.smtp():
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE) as refused:
            name = refused.makefile().readline().rpartition("[")[2].rstrip("]\n")
        text = says(tmp_path, "explain", name)
        assert text.startswith(f"refusal  {name}\nrule     max_from_ip\nof       127.0.0.1\n")
        assert "raise --max-from-ip" in text
        assert json.loads(says(tmp_path, "explain", "--json", name))["count"] == 2
        ended = command(tmp_path, "explain", "none")
        assert ended.returncode == os.EX_DATAERR
        assert "no refusal none" in only_line(ended)


def test_a_kick_and_questions_go_on_during_a_stop(tmp_path: Path) -> None:
    with Daemon(*LOCAL, *CONTROL, cwd=tmp_path) as daemon:
        client = daemon.smtp()
        begin_data(client)
        daemon.signal(signal.SIGTERM)
        daemon.wait_for("stopping: 1 sessions")
        assert "stopping" in says(tmp_path, "status")
        assert says(tmp_path, "drain") == "stopping: 1 sessions left\n"
        assert says(tmp_path, "kick", "--source", "127.0.0.1") == "1 session ended\n"
        assert last_word(client) == (421, b"4.3.2")
        assert daemon.process.wait(PATIENCE) == 0
    assert messages_of(tmp_path) == []


def messages_of(folder: Path) -> list[str]:
    return messages(folder / "Maildir") if (folder / "Maildir").exists() else []


def test_sessions_are_listed_in_pages(tmp_path: Path) -> None:
    count = 300
    options = (*LOCAL, *CONTROL, "-m", "0")
    with Daemon(*options, cwd=tmp_path) as daemon, ExitStack() as stack:
        for _ in range(count):
            address = ("127.0.0.1", daemon.port)
            stack.enter_context(socket.create_connection(address, timeout=PATIENCE))
        until(lambda: ask(tmp_path, "status")["sessions"] == count, "all are in")
        with connect(tmp_path) as sock:
            sizes: list[int] = []
            names: list[str] = []
            after = None
            while not sizes or after:
                request = {"v": 1, "command": "sessions", "limit": 200, "after": after}
                sock.sendall(json.dumps(request).encode() + b"\n")
                page = line(sock)
                sizes.append(len(page["sessions"]))
                names += [each["id"] for each in page["sessions"]]
                after = page["next"]
        assert sizes == [200, 100]
        assert len(set(names)) == count
        assert len(says(tmp_path, "sessions").splitlines()) == count + 1


# -- the command line ------------------------------------------------------------------------


def test_every_command_is_there_and_has_its_help(tmp_path: Path) -> None:
    assert tuple(CONTROL_COMMANDS) == ALL
    assert set(ALL) <= SUBCOMMANDS.keys()
    for name in ALL:
        ended = run(name, "-h", cwd=tmp_path, environment={"COLUMNS": "200"})
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.startswith(f"Usage: smtpd-fork {name} [OPTIONS]")
        assert "--control PATH" in ended.stdout
        assert max(map(len, ended.stdout.splitlines())) <= 80
        assert f"| `smtpd-fork {name}" in read("docs/control.md")


@pytest.mark.parametrize("name", ALL)
def test_without_a_daemon_the_status_is_69(tmp_path: Path, name: str) -> None:
    words = {"kick": ("x",), "explain": ("x",)}.get(name, ())
    ended = command(tmp_path, name, *words)
    assert ended.returncode == os.EX_UNAVAILABLE
    assert f"no daemon answers at {SOCKET}" in only_line(ended)


@pytest.mark.parametrize(
    "words",
    [
        ("status", "--nonsense"),
        ("sessions", "too", "much"),
        ("kick",),
        ("kick", "id", "--source", "192.0.2.1"),
        ("explain",),
        ("drain", "--timeout", "soon"),
    ],
)
def test_what_cannot_be_read_is_usage(place_with_daemon: Path, words: tuple[str, ...]) -> None:
    ended = command(place_with_daemon, *words)
    assert ended.returncode == os.EX_USAGE
    assert only_line(ended)


@pytest.mark.parametrize("source", ["somebody", "192.0.2.1/24", "192.0.2.0/33", "\x1b[2J"])
def test_what_is_no_source_is_usage(place_with_daemon: Path, source: str) -> None:
    ended = command(place_with_daemon, "kick", "--source", source)
    assert ended.returncode == os.EX_USAGE
    assert "\x1b" not in only_line(ended)


def test_without_a_path_it_is_said_where_to_name_one(tmp_path: Path) -> None:
    ended = run("status", cwd=tmp_path)
    assert ended.returncode == os.EX_USAGE
    assert "--control PATH, or SMTPD_FORK_CONTROL" in only_line(ended)


@pytest.mark.parametrize(
    "name",
    [b"\x1b]0;owned\x07", b"a\x1b[2J", "\x9b2J\u202e".encode(), b"\xff\xfe", b"[red]x[/]" * 9],
)
def test_a_name_with_escape_sequences_does_not_reach_the_terminal(
    place_with_daemon: Path, name: bytes
) -> None:
    (port,) = re.findall(r":(\d+)", str(ask(place_with_daemon, "status")["listeners"]))
    with socket.create_connection(("127.0.0.1", int(port)), timeout=PATIENCE) as client:
        lines = client.makefile("rb")
        assert lines.readline().startswith(b"220 ")
        client.sendall(b"HELO " + name + b"\r\n")
        assert lines.readline()
        for words in (("sessions",), ("sessions", "--json")):
            text = says(place_with_daemon, *words)
            assert len(text.splitlines()) >= 1
            assert all(char.isprintable() or char == "\n" for char in text), text
