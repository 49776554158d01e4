"""Options of limits in a real process: clients, time, sizes, and numbers."""

from __future__ import annotations

import re
import select
import smtplib
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from support.daemon import LOCAL, PATIENCE, Daemon
from support.dialogue import begin, connect, ehlo, first_line

if TYPE_CHECKING:
    from pathlib import Path

    from support.tls import Certificates


def test_limit_connections_defers_further_clients(tmp_path: Path) -> None:
    with Daemon(*LOCAL, "-c", "1", cwd=tmp_path) as daemon:
        first = daemon.smtp()
        with connect(("127.0.0.1", daemon.port)) as second:
            daemon.wait_for(r"connection limit reached \(1\): new clients wait in the backlog")
            second.settimeout(0.05)
            with pytest.raises(TimeoutError):
                second.recv(1)
            second.settimeout(PATIENCE)
            first.quit()
            assert second.recv(4) == b"220 "


def test_refuse_answers_421_at_once(tmp_path: Path) -> None:
    options = ("--limit-connections", "1", "--when-full", "refuse", "--hostname", "mx.example.com")
    with Daemon(*LOCAL, *options, cwd=tmp_path) as daemon, daemon.smtp():
        assert re.fullmatch(
            r"421 4\.3\.2 mx\.example\.com Too many connections, try again later \[\w+-\w+\]\r\n",
            first_line(("127.0.0.1", daemon.port)),
        )


def test_defer_with_seconds_answers_421_after_them(tmp_path: Path) -> None:
    with Daemon(*LOCAL, "-c", "1", "--when-full", "defer:1", cwd=tmp_path) as daemon, daemon.smtp():
        begun = time.monotonic()
        assert first_line(("127.0.0.1", daemon.port)).startswith("421 4.3.2 ")
        assert 0.9 < time.monotonic() - begun < 5


def test_max_from_ip_counts_each_address_by_itself(tmp_path: Path) -> None:
    with Daemon(*LOCAL, "-m", "1", cwd=tmp_path) as daemon, daemon.smtp():
        refused = first_line(("127.0.0.1", daemon.port))
        assert refused.startswith("421 4.7.0 ")
        assert "from 127.0.0.1," in refused
        with daemon.smtp(source="127.0.0.2") as other:
            assert other.noop()[0] == 250


def test_max_from_ip_0_is_no_limit(tmp_path: Path) -> None:
    with Daemon(*LOCAL, "--max-from-ip", "0", cwd=tmp_path) as daemon, ExitStack() as stack:
        clients = [stack.enter_context(daemon.smtp()) for _ in range(60)]
        assert clients[-1].noop()[0] == 250


def test_timeout_ends_an_idle_session(tmp_path: Path) -> None:
    with Daemon(*LOCAL, "--timeout", "100ms", cwd=tmp_path) as daemon, daemon.smtp() as client:
        code, text = client.getreply()
        assert (code, text[:5]) == (421, b"4.4.2")


def test_tls_handshake_timeout_ends_a_handshake_that_stalls(
    tmp_path: Path, certificates: Certificates
) -> None:
    with Daemon(
        *("-l", "smtps:127.0.0.1:0", "--handler", "discard", "--tls-handshake-timeout", "100ms"),
        *("--tls-cert", str(certificates.cert), "--tls-key", str(certificates.key)),
        cwd=tmp_path,
    ) as daemon:
        begun = time.monotonic()
        with connect(("127.0.0.1", daemon.port)) as client:
            assert client.recv(100) == b""
        assert time.monotonic() - begun < 5


def test_max_line_length_is_enforced(tmp_path: Path) -> None:
    with (
        Daemon(*LOCAL, "--max-line-length", "1K", cwd=tmp_path) as daemon,
        daemon.smtp() as client,
    ):
        client.ehlo()
        for length, code in ((1022, 250), (1023, 500)):
            client.mail("a@example.com")
            client.rcpt("b@example.com")
            assert client.data("x" * length + "\r\n")[0] == code


def test_max_message_size_is_announced_and_enforced(tmp_path: Path) -> None:
    with (
        Daemon(*LOCAL, "--max-message-size", "10K", cwd=tmp_path) as daemon,
        daemon.smtp() as client,
    ):
        assert ehlo(client)["size"] == "10240"
        assert client.docmd("MAIL FROM:<a@example.com> SIZE=10241")[0] == 552
        client.mail("a@example.com")
        client.rcpt("b@example.com")
        assert client.data("x" * 70 + "\r\n" + ("x" * 70 + "\r\n") * 150)[0] == 552
        client.mail("a@example.com")
        client.rcpt("b@example.com")
        assert client.data("Subject: short\r\n\r\nshort\r\n")[0] == 250


def test_data_timeout_ends_a_message_that_stalls(tmp_path: Path) -> None:
    options = ("--data-timeout", "200ms")
    with Daemon(*LOCAL, *options, cwd=tmp_path) as daemon, daemon.smtp() as client:
        begin(client)
        client.send("Subject: half of it\r\n")
        code, text = client.getreply()
        assert (code, text[:5]) == (421, b"4.4.2")


def test_handler_timeout_limits_a_hook(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import asyncio\n\n\nclass Slow:\n"
        "    async def handle_DATA(self, server, session, envelope):\n"
        "        await asyncio.sleep(3600)\n"
        "        return '250 ok'\n"
    )
    options = ("-l", "127.0.0.1:0", "--handler", "slow:Slow", "--handler-timeout", "200ms")
    with Daemon(*options, cwd=tmp_path) as daemon, daemon.smtp() as client:
        begin(client)
        client.send("hello\r\n.\r\n")
        assert client.getreply()[0] == 451
        assert client.noop()[0] == 250
        assert client.rcpt("b@example.com")[0] == 503


def test_session_timeout_ends_a_session_that_is_not_idle(tmp_path: Path) -> None:
    options = ("--session-timeout", "500ms")
    with Daemon(*LOCAL, *options, cwd=tmp_path) as daemon, daemon.smtp() as client:
        assert client.sock is not None
        begun, code = time.monotonic(), 250
        while code == 250:
            assert time.monotonic() - begun < 5
            is_told = select.select([client.sock], [], [], 0.05)[0]
            code, text = client.getreply() if is_told else client.noop()
        assert (code, text[:5]) == (421, b"4.4.2")


def test_max_errors_limits_invalid_commands(tmp_path: Path) -> None:
    with Daemon(*LOCAL, "--max-errors", "2", cwd=tmp_path) as daemon, daemon.smtp() as client:
        codes = [client.docmd("FOO")[0] for _ in range(3)]
        assert codes == [500, 500, 421]
        with pytest.raises(smtplib.SMTPServerDisconnected):
            client.noop()


def test_max_rejects_limits_rejected_commands(tmp_path: Path) -> None:
    with Daemon(*LOCAL, "--max-rejects", "2", cwd=tmp_path) as daemon, daemon.smtp() as client:
        client.ehlo()
        client.mail("a@example.com")
        replies = [client.docmd("RCPT TO:<b@>") for _ in range(3)]
        assert [code for code, _ in replies] == [553, 553, 421]
        assert replies[-1][1].startswith(b"4.7.0 ")
        with pytest.raises(smtplib.SMTPServerDisconnected):
            client.noop()


def test_max_recipients_is_announced_and_enforced(tmp_path: Path) -> None:
    with Daemon(*LOCAL, "--max-recipients", "2", cwd=tmp_path) as daemon, daemon.smtp() as client:
        assert ehlo(client)["limits"] == "RCPTMAX=2"
        client.mail("a@example.com")
        replies = [client.rcpt(f"{name}@example.com") for name in "bcd"]
        assert [code for code, _ in replies] == [250, 250, 452]
        assert replies[-1][1].startswith(b"4.5.3 ")
        assert client.data("hello\r\n")[0] == 250


def test_max_buffered_limits_the_memory_of_all_sessions(tmp_path: Path) -> None:
    with (
        Daemon(*LOCAL, "--max-buffered", "100K", cwd=tmp_path) as daemon,
        daemon.smtp() as first,
        daemon.smtp() as second,
    ):
        # 64 KiB of a session are not charged, but the rest of 130,000 bytes is: two do not fit.
        part = ("x" * 70 + "\r\n") * 1800
        begin(first)
        first.send(part)
        begin(second)
        second.send(f"{part}.\r\n")
        code, text = second.getreply()
        assert (code, text[:5]) == (452, b"4.3.1")
        first.send(".\r\n")
        assert first.getreply()[0] == 250
        begin(second)
        second.send(f"{part}.\r\n")
        assert second.getreply()[0] == 250
        begin(second)
        second.send(f"{part}{part}.\r\n")
        assert second.getreply()[0] == 452


def test_max_buffered_0_is_no_limit(tmp_path: Path) -> None:
    with Daemon(*LOCAL, "--max-buffered", "0", cwd=tmp_path) as daemon, daemon.smtp() as client:
        begin(client)
        client.send(("x" * 70 + "\r\n") * 20_000 + ".\r\n")
        assert client.getreply()[0] == 250


@pytest.mark.parametrize("rate", ["0", "1000000"])
def test_min_data_rate_does_not_apply_to_a_message_shorter_than_a_minute(
    tmp_path: Path, rate: str
) -> None:
    with Daemon(*LOCAL, "--min-data-rate", rate, cwd=tmp_path) as daemon:
        daemon.deliver()
