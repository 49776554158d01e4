"""The commands of an administrator for a running daemon."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from support.control import CONTROL, SOCKET, ask, command, connect, line, says
from support.daemon import LOCAL, PATIENCE, Daemon, messages, on_both_loops, run, until
from support.dialogue import begin_data, is_refused, last_word
from support.place import only_line

if TYPE_CHECKING:
    from pathlib import Path

    from support.tls import Certificates


def sessions(folder: Path) -> list[dict[str, str]]:
    return [json.loads(each) for each in says(folder, "sessions", "--json").splitlines()]


def test_the_status_has_the_current_values(daemon: Daemon, tmp_path: Path) -> None:
    with daemon.smtp() as client:
        client.ehlo("client.example")
        text = says(tmp_path, "status")
        shown = json.loads(says(tmp_path, "status", "--json"))
        client.quit()
    pid = daemon.process.pid
    assert re.match(rf"smtpd-fork \S+ on \S+, pid {pid}: serving, for \d+s\n", text)
    assert re.search(r"^sessions +1 of 1000 \(command 1\)$", text, re.MULTILINE)
    assert re.search(r"^clients +1 \(127\.0\.0\.1 1\)$", text, re.MULTILINE)
    assert f"127.0.0.1:{daemon.port}" in text
    assert (shown["sessions"], shown["limit"], shown["phases"]) == (1, 1000, {"command": 1})
    assert (shown["admitted"], shown["state"], shown["pid"]) == (1, "serving", pid)
    assert shown["listeners"] == [f"127.0.0.1:{daemon.port}"]


def test_the_environment_variable_names_the_socket_for_daemon_and_command(tmp_path: Path) -> None:
    environment = {"SMTPD_FORK_CONTROL": SOCKET}
    with Daemon(*LOCAL, cwd=tmp_path, environment=environment):
        ended = run("status", cwd=tmp_path, environment=environment)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert "serving" in ended.stdout


def test_sessions_are_listed_with_their_phases(daemon: Daemon, tmp_path: Path) -> None:
    with daemon.smtp() as one, daemon.smtp() as other:
        one.ehlo("one.example")
        begin_data(other)
        first, second = sessions(tmp_path)
        table = says(tmp_path, "sessions").splitlines()
        other.send(b"\r\n.\r\n")
        assert other.getreply()[0] == 250
    assert (first["helo"], first["phase"], first["key"]) == (
        "one.example",
        "command",
        "127.0.0.1",
    )
    assert second["phase"] == "data"
    assert table[0].split() == ["ID", "AGE", "STATE", "TLS", "MSGS", "CLIENT", "HELO"]
    assert table[1].split()[0] == first["id"]
    assert table[1].endswith("one.example")
    assert len(table) == 3


def test_a_session_is_kicked_by_its_id(daemon: Daemon, tmp_path: Path) -> None:
    with daemon.smtp() as other:
        client = daemon.smtp()
        client.ehlo("kicked.example")
        (shown,) = [each for each in sessions(tmp_path) if each["helo"] == "kicked.example"]
        assert says(tmp_path, "kick", shown["id"]) == "1 session ended\n"
        assert last_word(client) == (421, b"4.3.2")
        assert other.noop()[0] == 250
        ended = command(tmp_path, "kick", shown["id"])
        assert ended.returncode == os.EX_DATAERR
        assert only_line(ended) == f"smtpd-fork: no session {shown['id']}\n"
    assert f"kick {shown['id']}" in daemon.log


@pytest.mark.parametrize("source", ["127.0.0.2", "127.0.0.2/31"])
def test_all_sessions_of_a_client_are_kicked(daemon: Daemon, tmp_path: Path, source: str) -> None:
    with daemon.smtp() as other:
        clients = [daemon.smtp(source="127.0.0.2") for _ in range(3)]
        assert says(tmp_path, "kick", source) == "3 sessions ended\n"
        for client in clients:
            assert last_word(client) == (421, b"4.3.2")
        assert says(tmp_path, "kick", source) == "0 sessions ended\n"
        assert other.noop()[0] == 250


def test_a_message_that_is_being_stored_survives_a_kick(tmp_path: Path) -> None:
    """The handler waits while it stores a message, until the kick is complete."""
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
        assert says(tmp_path, "kick", "127.0.0.1") == "1 session ended\n"
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
"""For each phase of a client: the listener, the options, and the data that the client sends."""


@on_both_loops
@pytest.mark.parametrize("where", PHASES)
def test_a_kick_ends_a_client_in_any_phase(
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
            (shown,) = ask(tmp_path, "sessions")["sessions"]
            assert says(tmp_path, "kick", shown["id"]) == "1 session ended\n"
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


def test_a_paused_daemon_admits_no_clients_until_it_resumes(daemon: Daemon, tmp_path: Path) -> None:
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
        assert says(tmp_path, "drain") == "draining: 1 session left\n"
        daemon.wait_for("draining: 1 session open")
        assert is_refused(daemon.port)
        assert "draining" in says(tmp_path, "status")
        assert says(tmp_path, "drain") == "draining: 1 session left\n"
        client.sendmail("a@example.com", ["b@example.com"], "Subject: hi\r\n\r\nhello\r\n")
        assert client.quit()[0] == 221
    assert daemon.process.wait(PATIENCE) == 0
    assert daemon.log.count("control: uid") == 1


def test_a_drain_becomes_a_stop_after_its_time_limit(daemon: Daemon, tmp_path: Path) -> None:
    client = daemon.smtp()
    says(tmp_path, "drain", "--timeout", "100ms")
    assert last_word(client) == (421, b"4.3.2")
    assert daemon.process.wait(PATIENCE) == 0
    assert "drain timeout: stopping" in daemon.log


def test_a_signal_turns_a_drain_into_a_stop(daemon: Daemon, tmp_path: Path) -> None:
    client = daemon.smtp()
    says(tmp_path, "drain")
    daemon.signal(signal.SIGTERM)
    assert last_word(client) == (421, b"4.3.2")
    assert daemon.process.wait(PATIENCE) == 0


def test_the_drain_command_can_wait_for_the_end(daemon: Daemon, tmp_path: Path) -> None:
    assert says(tmp_path, "drain", "--wait").splitlines() == ["draining: 0 sessions left", "ended"]
    assert daemon.process.wait(PATIENCE) == 0


def test_the_rejections_of_a_session_are_explained_and_counted(tmp_path: Path) -> None:
    with Daemon(*LOCAL, *CONTROL, "--max-message-size", "1000", cwd=tmp_path) as daemon:
        with daemon.smtp() as client:
            client.ehlo("client.example")
            client.mail("a@example.com")
            client.rcpt("b@example.com")
            _, text = client.data("x" * 2000)
            client.quit()
        name = text.decode().rpartition("[")[2].rstrip("]")
        for written in (name, f"[{name}]"):  # as copied from a log
            assert says(tmp_path, "explain", written).splitlines() == [
                f"rejected DATA from 127.0.0.1 [{name}]",
                f"reply    552 {text.decode()}",
                "reason   message_size",
                "from     <a@example.com>",
                "to       <b@example.com>",
                "helo     client.example",
            ]
        (shown,) = json.loads(says(tmp_path, "explain", "--json", name))["rejections"]
        assert (shown["command"], shown["recipient"]) == ("DATA", "b@example.com")
        status = says(tmp_path, "status")
        assert re.search(r"^messages +1 \(too_big 1\)$", status, re.MULTILINE)
        assert re.search(r"^rejected +1 \(message_size 1\)$", status, re.MULTILINE)


def test_a_refusal_is_explained(tmp_path: Path) -> None:
    with Daemon(*LOCAL, *CONTROL, "-m", "1", cwd=tmp_path) as daemon, daemon.smtp():
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE) as refused:
            name = refused.makefile().readline().rpartition("[")[2].rstrip("]\n")
        text = says(tmp_path, "explain", name)
        facts = (
            rf"refusal  {name}\nrule     max_from_ip\nclient   127\.0\.0\.1:\d+\ncount    2, more"
        )
        assert re.match(facts, text)
        assert "raise --max-from-ip" in text
        assert json.loads(says(tmp_path, "explain", "--json", name))["count"] == 2
        ended = command(tmp_path, "explain", "none")
        assert ended.returncode == os.EX_DATAERR
        assert "no refusal none" in only_line(ended)


def test_the_explanation_of_a_denied_client_has_its_address_and_the_network(tmp_path: Path) -> None:
    with Daemon(*LOCAL, *CONTROL, "--deny", "127.0.0.0/8", cwd=tmp_path) as daemon:
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE) as refused:
            name = refused.makefile().readline().rpartition("[")[2].rstrip("]\n")
            port = refused.getsockname()[1]
        lines = says(tmp_path, "explain", f"[{name}]").splitlines()
        assert f"client   127.0.0.1:{port}" in lines
        assert "network  127.0.0.0/8" in lines


def test_requests_are_answered_during_a_stop(tmp_path: Path) -> None:
    with Daemon(*LOCAL, *CONTROL, cwd=tmp_path) as daemon:
        client = daemon.smtp()
        begin_data(client)
        daemon.signal(signal.SIGTERM)
        daemon.wait_for("stopping: 1 session open")
        assert "stopping" in says(tmp_path, "status")
        assert says(tmp_path, "drain") == "stopping: 1 session left\n"
        assert says(tmp_path, "kick", "127.0.0.1") == "1 session ended\n"
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
