"""The command: every option as a process has it, from a flag and from the environment."""

from __future__ import annotations

import os
import re
import select
import smtplib
import socket
import ssl
import stat
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from email import message_from_string
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from click.core import ParameterSource
from support.daemon import COMMAND, PATIENCE, Daemon, clean_environment, messages, run
from support.peers import peer

from smtpd_fork.cli.command import command
from smtpd_fork.cli.options import OPTIONS, SECTIONS, SettingOption
from smtpd_fork.config import DaemonConfig
from smtpd_fork.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.tls import Certificates

LOCAL = ("-l", "127.0.0.1:0", "--handler", "discard")
"""One address, a free port, and nothing written."""

WIDE = {"COLUMNS": "200"}

CONSOLE_SCRIPT = Path(sys.executable).with_name("smtpd-fork")


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return ports of *host* that nobody has, or had a moment ago."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind((host, 0))
        return [sock.getsockname()[1] for sock in sockets]


def port_of(place: str) -> int:
    return int(place.rpartition(":")[2])


def connect(address: Any) -> socket.socket:
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        try:
            sock.connect(address)
        except OSError:
            sock.close()
            raise
        return sock
    return socket.create_connection(address, timeout=PATIENCE)


def first_line(address: Any) -> str:
    """Return the first line that a server says there."""
    with connect(address) as sock, sock.makefile("rb") as lines:
        return lines.readline().decode()


def greets(address: Any) -> bool:
    return first_line(address).startswith("220 ")


def until(happened: Callable[[], bool], what: str) -> None:
    """Wait for something that a foreign process does, and that nobody announces."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.005)


def ehlo(client: smtplib.SMTP) -> dict[str, str]:
    """Return what the server offers."""
    code, _ = client.ehlo()
    assert code == 250
    return dict(client.esmtp_features)


# -- listening ---------------------------------------------------------------------------------


def test_without_an_address_it_answers_on_ipv4_and_ipv6(tmp_path: Path) -> None:
    with Daemon("-p", "0", "--handler", "discard", cwd=tmp_path) as daemon:
        assert greets(("127.0.0.1", daemon.port))
        assert greets(("::1", daemon.port))
        assert daemon.stop() == 0


def test_several_ports_are_all_bound(tmp_path: Path) -> None:
    one, other = free_ports(2)
    with Daemon(
        "-p",
        str(one),
        "--port",
        str(other),
        "-l",
        "127.0.0.1",
        "--handler",
        "discard",
        cwd=tmp_path,
    ) as daemon:
        assert daemon.places == [f"127.0.0.1:{one}", f"127.0.0.1:{other}"]
        assert greets(("127.0.0.1", one))
        assert greets(("127.0.0.1", other))


def test_an_address_without_a_port_is_bound_on_every_port(tmp_path: Path) -> None:
    one, other = free_ports(2)
    ports = ("-p", str(one), "-p", str(other))
    listen = ("-l", "127.0.0.1", "--listen-address", "127.0.0.2", "-l", "127.0.0.3:0")
    with Daemon(*ports, *listen, "--handler", "discard", cwd=tmp_path) as daemon:
        *spread, alone = daemon.places
        assert spread == [
            f"127.0.0.1:{one}",
            f"127.0.0.1:{other}",
            f"127.0.0.2:{one}",
            f"127.0.0.2:{other}",
        ]
        assert alone.startswith("127.0.0.3:")
        assert port_of(alone) not in {0, one, other}
        assert all(greets((place.partition(":")[0], port_of(place))) for place in daemon.places)


def test_port_0_twice_is_two_free_ports(tmp_path: Path) -> None:
    with Daemon(
        "-p", "0", "-p", "0", "-l", "127.0.0.1", "--handler", "discard", cwd=tmp_path
    ) as daemon:
        assert len({port_of(place) for place in daemon.places}) == 2


def test_an_ipv6_address_is_written_in_brackets(tmp_path: Path) -> None:
    with Daemon("-l", "[::1]:0", "--handler", "discard", cwd=tmp_path) as daemon:
        assert daemon.places[0].startswith("[::1]:")
        assert greets(("::1", daemon.port))


def test_both_wildcards_on_one_port_are_two_sockets(tmp_path: Path) -> None:
    (port,) = free_ports(1, "0.0.0.0")
    with Daemon(
        "-p", str(port), "-l", "0.0.0.0", "-l", "::", "--handler", "discard", cwd=tmp_path
    ) as daemon:
        assert daemon.places == [f"0.0.0.0:{port}", f"[::]:{port}"]
        assert greets(("127.0.0.1", port))
        assert greets(("::1", port))


def test_a_unix_socket_answers_and_its_path_is_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "smtp.sock"
    with Daemon("-l", "unix:smtp.sock", "--handler", "discard", cwd=tmp_path) as daemon:
        assert daemon.places == [f"unix:{path}"]
        assert greets(str(path))
        assert daemon.stop() == 0
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "mode"),
    [((), 0o660), (("--socket-mode", "0600"), 0o600), (("--socket-mode", "666"), 0o666)],
    ids=["default", "0600", "666"],
)
def test_socket_mode_is_the_mode_of_the_path(
    tmp_path: Path, options: tuple[str, ...], mode: int
) -> None:
    path = tmp_path / "smtp.sock"
    with Daemon("-l", f"unix:{path}", *options, "--handler", "discard", cwd=tmp_path):
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_unix_socket_that_a_dead_process_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "smtp.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Daemon("-l", f"unix:{path}", "--handler", "discard", cwd=tmp_path):
        assert greets(str(path))


def test_a_unix_socket_where_somebody_answers_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "smtp.sock"
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(path))
        alive.listen()
        ended = run("-l", f"unix:{path}", "--handler", "discard", cwd=tmp_path)
        assert ended.returncode == os.EX_OSERR
        assert f"unix:{path}: another program answers there" in ended.stderr
        connect(str(path)).close()


@pytest.mark.parametrize(("backlog", "queue"), [("0", 0), ("-5", 0), ("7", 7), ("999999999", None)])
def test_it_serves_with_any_backlog(tmp_path: Path, backlog: str, queue: int | None) -> None:
    with Daemon(*LOCAL, "--backlog", backlog, cwd=tmp_path) as daemon:
        with ExitStack() as stack:
            for _ in range(3):  # more at once than a backlog of 0 has room for
                stack.enter_context(daemon.smtp())
        peer("ss")
        shown = subprocess.run(
            [peer("ss"), "-Hltn", f"sport = :{daemon.port}"],
            capture_output=True,
            text=True,
            check=True,
        )
        most = int(Path("/proc/sys/net/core/somaxconn").read_text())
        assert int(shown.stdout.split()[2]) == (most if queue is None else queue)


# -- limits ------------------------------------------------------------------------------------


def test_limit_connections_defers_who_does_not_fit(tmp_path: Path) -> None:
    with Daemon(*LOCAL, "-c", "1", cwd=tmp_path) as daemon:
        first = daemon.smtp()
        with connect(("127.0.0.1", daemon.port)) as second:
            daemon.wait_for(r"no room: limit_connections \(2 > 1\); clients wait in the backlog")
            second.settimeout(0.05)
            with pytest.raises(TimeoutError):
                second.recv(1)
            second.settimeout(PATIENCE)
            first.quit()
            assert second.recv(4) == b"220 "


def test_refuse_answers_421_at_once(tmp_path: Path) -> None:
    options = ("--limit-connections", "1", "--when-full", "refuse", "--hostname", "mx.example.com")
    with Daemon(*LOCAL, *options, cwd=tmp_path) as daemon, daemon.smtp():
        assert first_line(("127.0.0.1", daemon.port)) == (
            "421 4.3.2 mx.example.com Too many connections, try again later\r\n"
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


def test_max_message_size_is_announced_and_kept(tmp_path: Path) -> None:
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


def begin(client: smtplib.SMTP) -> None:
    """Say all that comes before a message's text."""
    client.ehlo()
    client.mail("a@example.com")
    client.rcpt("b@example.com")
    assert client.docmd("DATA")[0] == 354


def test_data_timeout_ends_a_message_that_stalls(tmp_path: Path) -> None:
    options = ("--data-timeout", "200ms")
    with Daemon(*LOCAL, *options, cwd=tmp_path) as daemon, daemon.smtp() as client:
        begin(client)
        client.send("Subject: half of it\r\n")
        code, text = client.getreply()
        assert (code, text[:5]) == (421, b"4.4.2")


def test_handler_timeout_is_what_a_handler_gets_for_an_answer(tmp_path: Path) -> None:
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


def test_max_errors_is_how_many_are_answered(tmp_path: Path) -> None:
    with Daemon(*LOCAL, "--max-errors", "2", cwd=tmp_path) as daemon, daemon.smtp() as client:
        codes = [client.docmd("FOO")[0] for _ in range(3)]
        assert codes == [500, 500, 421]
        with pytest.raises(smtplib.SMTPServerDisconnected):
            client.noop()


def test_max_recipients_is_announced_and_kept(tmp_path: Path) -> None:
    with Daemon(*LOCAL, "--max-recipients", "2", cwd=tmp_path) as daemon, daemon.smtp() as client:
        assert ehlo(client)["limits"] == "RCPTMAX=2"
        client.mail("a@example.com")
        replies = [client.rcpt(f"{name}@example.com") for name in "bcd"]
        assert [code for code, _ in replies] == [250, 250, 452]
        assert replies[-1][1].startswith(b"4.5.3 ")
        assert client.data("hello\r\n")[0] == 250


def test_max_buffered_is_what_all_sessions_hold_together(tmp_path: Path) -> None:
    with (
        Daemon(*LOCAL, "--max-buffered", "10K", cwd=tmp_path) as daemon,
        daemon.smtp() as first,
        daemon.smtp() as second,
    ):
        part = ("x" * 70 + "\r\n") * 100  # 7200 bytes: one has room, two have not
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
def test_min_data_rate_leaves_a_message_alone_that_takes_no_minute(
    tmp_path: Path, rate: str
) -> None:
    with Daemon(*LOCAL, "--min-data-rate", rate, cwd=tmp_path) as daemon:
        daemon.deliver()


# -- mail --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "code", "kept"),
    [
        ((), 550, None),
        (("--bare-newline", "reject"), 550, None),
        (("--bare-newline", "normalize"), 250, b"Subject: x\r\n\r\none\r\ntwo\r\n.\r\nthree\r\n"),
        (("--bare-newline", "accept"), 250, b"Subject: x\r\n\r\none\ntwo\n.\nthree\r\n"),
    ],
    ids=["default", "reject", "normalize", "accept"],
)
def test_bare_newline_is_what_becomes_of_a_bare_lf(
    tmp_path: Path, options: tuple[str, ...], code: int, kept: bytes | None
) -> None:
    """By a handler that keeps the bytes: a Maildir has LF for each CR LF."""
    (tmp_path / "keep.py").write_text(
        "import pathlib\n\n\nclass Keep:\n"
        "    async def handle_DATA(self, server, session, envelope):\n"
        "        pathlib.Path('kept').write_bytes(envelope.content)\n"
        "        return '250 ok'\n"
    )
    always = ("-l", "127.0.0.1:0", "--handler", "keep:Keep")
    with Daemon(*always, *options, cwd=tmp_path) as daemon, daemon.smtp() as client:
        begin(client)
        client.send(b"Subject: x\r\n\r\none\ntwo\n.\nthree\r\n.\r\n")
        answer, text = client.getreply()
        assert answer == code
        assert code == 250 or text.startswith(b"5.6.11 ")
        assert client.noop()[0] == 250
    path = tmp_path / "kept"
    assert (path.read_bytes() if path.exists() else None) == kept


def test_without_a_handler_mail_goes_into_a_maildir_in_the_current_folder(tmp_path: Path) -> None:
    with Daemon("-l", "127.0.0.1:0", cwd=tmp_path) as daemon:
        daemon.deliver()
    (text,) = messages(tmp_path / "Maildir")
    message = message_from_string(text)
    assert message["Return-Path"] == "<a@example.com>"
    assert message["Delivered-To"] == "b@example.com"
    assert message.get_payload() == "hello\n"


def test_debug_prints_to_standard_output(tmp_path: Path) -> None:
    with Daemon("-l", "127.0.0.1:0", "--handler", "debug", cwd=tmp_path) as daemon:
        daemon.deliver("Subject: look\r\n\r\nat this\r\n")
        daemon.stop()
        assert daemon.process.stdout is not None
        printed = daemon.process.stdout.read()
    assert "from: a@example.com  to: b@example.com\n" in printed
    assert "Subject: look\n\nat this\n" in printed


def test_discard_keeps_nothing(tmp_path: Path) -> None:
    with Daemon(*LOCAL, cwd=tmp_path) as daemon:
        daemon.deliver()
    assert list(tmp_path.iterdir()) == []


HANDLERS = """
class Only:
    def __init__(self, *names):
        self.names = names

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.partition("@")[0] not in self.names:
            return "550 5.1.1 Only " + " and ".join(self.names)
        envelope.rcpt_tos.append(address)
        return "250 ok"


instance = Only("instance")


def factory(*names):
    return Only("factory", *names)
"""


@pytest.mark.parametrize(
    ("handler", "names"),
    [
        ("policy:instance", "instance"),
        ("policy:Only:b,c", "b and c"),
        ("policy:factory", "factory"),
        ("policy:factory:d", "factory and d"),
    ],
)
def test_a_handler_of_ones_own_comes_from_the_current_folder(
    tmp_path: Path, handler: str, names: str
) -> None:
    """By the console script: `python -m` would look there by itself."""
    (tmp_path / "policy.py").write_text(HANDLERS)
    options = ("-l", "127.0.0.1:0", "--handler", handler, "--handler", "discard")
    with (
        Daemon(*options, cwd=tmp_path, command=[str(CONSOLE_SCRIPT)]) as daemon,
        daemon.smtp() as client,
    ):
        client.ehlo()
        client.mail("a@example.com")
        assert client.rcpt("nobody@example.com") == (550, f"5.1.1 Only {names}".encode())
        assert client.rcpt(f"{names.rsplit(maxsplit=1)[-1]}@example.com")[0] == 250
        assert client.data("hello\r\n")[0] == 250


def test_aiosmtpds_mailbox_is_made_from_the_command_line(tmp_path: Path) -> None:
    handler = f"aiosmtpd.handlers:Mailbox:{tmp_path}/box"
    with Daemon("-l", "127.0.0.1:0", "--handler", handler, cwd=tmp_path) as daemon:
        daemon.deliver()
    (text,) = messages(tmp_path / "box")
    assert "\nX-RcptTo: b@example.com\n" in text
    assert text.endswith("hello\n")


def test_hostname_is_in_the_banner_and_in_the_headers(tmp_path: Path) -> None:
    options = ("-l", "127.0.0.1:0", "--hostname", "mx.example.com")
    with Daemon(*options, cwd=tmp_path) as daemon:
        banner = first_line(("127.0.0.1", daemon.port))
        assert banner == "220 mx.example.com ESMTP smtpd-fork\r\n"
        daemon.deliver()
    assert "by mx.example.com (smtpd-fork)" in messages(tmp_path / "Maildir")[0]


# -- TLS ---------------------------------------------------------------------------------------


def test_with_a_certificate_starttls_is_offered(tmp_path: Path, certificates: Certificates) -> None:
    tls = ("--tls-cert", str(certificates.cert), "--tls-key", str(certificates.key))
    with Daemon(*LOCAL, *tls, cwd=tmp_path) as daemon, daemon.smtp() as client:
        assert "starttls" in ehlo(client)
        client.starttls(context=certificates.client)
        assert "starttls" not in ehlo(client)
        assert client.sendmail("a@example.com", "b@example.com", "hello") == {}


def test_the_key_may_be_in_the_certificates_file(
    tmp_path: Path, certificates: Certificates
) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(certificates.key.read_bytes() + certificates.cert.read_bytes())
    with Daemon(*LOCAL, "--tls-cert", "both.pem", cwd=tmp_path) as daemon, daemon.smtp() as client:
        client.starttls(context=certificates.client)
        assert client.noop()[0] == 250


def test_without_a_certificate_starttls_is_not_offered(tmp_path: Path) -> None:
    with Daemon(*LOCAL, cwd=tmp_path) as daemon, daemon.smtp() as client:
        assert "starttls" not in ehlo(client)


def test_smtps_speaks_tls_from_the_first_byte(tmp_path: Path, certificates: Certificates) -> None:
    tls = ("--tls-cert", str(certificates.cert), "--tls-key", str(certificates.key))
    with Daemon("-l", "smtps:127.0.0.1:0", *tls, "--handler", "discard", cwd=tmp_path) as daemon:
        assert daemon.places[0].startswith("smtps:127.0.0.1:")
        with smtplib.SMTP_SSL(
            "127.0.0.1", daemon.port, context=certificates.client, timeout=PATIENCE
        ) as client:
            assert "starttls" not in ehlo(client)
            assert client.sendmail("a@example.com", "b@example.com", "hello") == {}


def test_require_starttls_takes_no_mail_in_the_clear(
    tmp_path: Path, certificates: Certificates
) -> None:
    tls = ("--tls-cert", str(certificates.cert), "--tls-key", str(certificates.key))
    with Daemon(*LOCAL, *tls, "--require-starttls", cwd=tmp_path) as daemon:
        with daemon.smtp() as client:
            client.ehlo()
            assert client.mail("a@example.com")[0] == 530
            client.starttls(context=certificates.client)
            client.ehlo()
            assert client.mail("a@example.com")[0] == 250


# -- the process -------------------------------------------------------------------------------


def test_it_runs_on_the_loop_that_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "which.py").write_text(
        "import asyncio\n\n\nclass Which:\n"
        "    async def handle_DATA(self, server, session, envelope):\n"
        "        return '250 ' + type(asyncio.get_running_loop()).__module__\n"
    )
    said = {}
    for loop in ("uvloop", "asyncio"):
        options = ("-l", "127.0.0.1:0", "--handler", "which:Which", "--loop", loop)
        with Daemon(*options, cwd=tmp_path) as daemon, daemon.smtp() as client:
            client.ehlo()
            client.mail("a@example.com")
            client.rcpt("b@example.com")
            said[loop] = client.data("hello")
    assert said["uvloop"] == (250, b"uvloop")
    assert said["asyncio"][1].startswith(b"asyncio.")


def test_shutdown_timeout_is_what_a_message_in_flight_gets(tmp_path: Path) -> None:
    options = ("--shutdown-timeout", "200ms")
    with Daemon(*LOCAL, *options, cwd=tmp_path) as daemon, daemon.smtp() as client:
        client.ehlo()
        client.mail("a@example.com")
        client.rcpt("b@example.com")
        client.putcmd("DATA")
        assert client.getreply()[0] == 354
        begun = time.monotonic()
        assert daemon.stop() == 0
        assert 0.15 < time.monotonic() - begun < 5
        assert "1 sessions were cut" in daemon.log


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_log_level_is_the_least_that_is_logged(tmp_path: Path, level: str) -> None:
    log = tmp_path / "log"
    path = str(tmp_path / "smtp.sock")
    options = ("-l", f"unix:{path}", "--handler", "discard", "--log-to", "log", "-c", "1")
    with subprocess.Popen(
        [*COMMAND, *options, "--when-full", "refuse", "--log-level", level],
        cwd=tmp_path,
        env=clean_environment(),
    ) as process:
        try:
            held = greeted(path)
            assert first_line(path).startswith("421 ")  # and so a warning
            held.close()
        finally:
            process.terminate()
        assert process.wait(PATIENCE) == 0
    levels = ["DEBUG", "INFO", "WARNING", "ERROR"]
    logged = {line.split()[2] for line in log.read_text().splitlines()}
    wanted = set(levels[levels.index(level.upper()) :]) & {"INFO", "WARNING"}
    assert logged - {"DEBUG"} == wanted


def greeted(path: str) -> socket.socket:
    """Return a client that was let in, by a daemon that does not tell when it serves."""
    until(lambda: os.path.exists(path), "the socket's path")
    while True:
        try:
            client = connect(path)
        except ConnectionRefusedError:  # bound, and not listening yet
            continue
        assert client.recv(4) == b"220 "
        return client


def test_log_to_a_file_leaves_standard_error_alone(tmp_path: Path) -> None:
    log = tmp_path / "smtpd.log"
    with subprocess.Popen(
        [*COMMAND, *LOCAL, "--log-to", "smtpd.log"],
        cwd=tmp_path,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            until(lambda: log.exists() and "serving, pid" in log.read_text(), "serving")
        finally:
            process.terminate()
        assert process.communicate(timeout=PATIENCE) == (b"", b"")
    lines = log.read_text().splitlines()
    assert lines[-1].endswith("INFO stopped")
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ ", line) for line in lines)


def test_a_log_file_is_appended_to(tmp_path: Path) -> None:
    log = tmp_path / "smtpd.log"
    log.write_text("yesterday\n")
    ended = run(*LOCAL, "--log-to", "smtpd.log", "--tls-cert", "no.pem", cwd=tmp_path)
    assert ended.returncode == os.EX_CONFIG
    assert log.read_text().startswith("yesterday\n")


def test_log_to_stdout_leaves_standard_error_alone(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, *LOCAL, "--log-to", "stdout"],
        cwd=tmp_path,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert any("serving, pid" in line for line in process.stdout)
        finally:
            process.terminate()
        rest, errors = process.communicate(timeout=PATIENCE)
    assert rest.endswith("INFO stopped\n")
    assert errors == ""


def test_every_connection_can_be_found_by_its_address_in_the_log(tmp_path: Path) -> None:
    with Daemon("-l", "127.0.0.1:0", cwd=tmp_path) as daemon, daemon.smtp() as client:
        assert client.sock is not None
        mine = client.sock.getsockname()
        client.sendmail("a@example.com", "b@example.com", "hello")
        daemon.wait_for(rf"queued: from=<a@example\.com> to=1 .* client=127\.0\.0\.1:{mine[1]}$")


# -- help and version --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def help_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    ended = run("--help", cwd=tmp_path_factory.mktemp("help"), environment=WIDE)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def test_help_fits_in_80_columns(help_text: str) -> None:
    assert max(map(len, help_text.splitlines())) <= 80


def test_help_mentions_every_option_once(help_text: str) -> None:
    flags = re.findall(r"^  (-\w(?:, )?)?(--[a-z-]+)?", help_text, re.MULTILINE)
    listed = [flag.rstrip(", ") for pair in flags for flag in pair if flag]
    wanted = [flag for option in OPTIONS for flag in option.opts]
    assert sorted(listed) == sorted([*wanted, "--version", "-h", "--help"])


def test_help_has_every_option_under_its_heading(help_text: str) -> None:
    assert re.findall(r"^(\w+):$", help_text, re.MULTILINE) == [*SECTIONS, "Other"]
    parts = re.split(r"^(\w+):$", help_text, flags=re.MULTILINE)
    texts = dict(zip(parts[1::2], parts[2::2], strict=True))
    for option in OPTIONS:
        assert max(option.opts, key=len) in texts[option.section]
        assert option.help


@pytest.mark.parametrize(
    ("option", "default"),
    [
        ("--port", "2525"),
        ("--backlog", "1024"),
        ("--socket-mode", "0660"),
        ("--max-from-ip", "50"),
        ("--max-message-size", "32M"),
        ("--data-timeout", "180 s"),
        ("--min-data-rate", "100"),
        ("--handler-timeout", "300 s"),
        ("--session-timeout", "3600 s"),
        ("--max-errors", "20"),
        ("--max-recipients", "1000"),
        ("--max-buffered", "512M"),
        ("--bare-newline", "reject"),
        ("--handler", "maildir:./Maildir"),
        ("--when-full", "defer"),
        ("--loop", "uvloop"),
    ],
)
def test_help_tells_the_defaults(help_text: str, option: str, default: str) -> None:
    text = help_text[help_text.index(f"{option} ") :]
    assert re.search(r"\[([^]]*)\]", text)[1] == default  # type: ignore[index]


def test_h_is_help(tmp_path: Path, help_text: str) -> None:
    ended = run("-h", cwd=tmp_path, environment=WIDE)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, help_text, "")


def test_version_is_the_packages(tmp_path: Path) -> None:
    ended = run("--version", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"smtpd-fork, version {__version__}\n"


def test_the_console_script_is_the_same_as_the_module(tmp_path: Path, help_text: str) -> None:
    script = [str(CONSOLE_SCRIPT)]
    ended = run("--help", cwd=tmp_path, command=script, environment=WIDE)
    assert (ended.returncode, ended.stdout) == (0, help_text)
    wrong = ("-c", "abc")
    ended, other = run(*wrong, cwd=tmp_path), run(*wrong, cwd=tmp_path, command=script)
    assert (ended.returncode, ended.stderr) == (other.returncode, other.stderr)


# -- the environment ---------------------------------------------------------------------------

WORDS: dict[str, tuple[str, object]] = {
    "port": ("25 587", ("25", "587")),
    "listen": ("127.0.0.1 [::1]:25", ("127.0.0.1", "[::1]:25")),
    "backlog": ("7", "7"),
    "socket_mode": ("0600", "0600"),
    "limit_connections": ("3", "3"),
    "max_from_ip": ("4", "4"),
    "when_full": ("refuse", "refuse"),
    "timeout": ("5m", "5m"),
    "tls_handshake_timeout": ("6s", "6s"),
    "data_timeout": ("3m", "3m"),
    "min_data_rate": ("50", "50"),
    "handler_timeout": ("90s", "90s"),
    "session_timeout": ("1h", "1h"),
    "max_errors": ("9", "9"),
    "max_recipients": ("200", "200"),
    "max_buffered": ("1G", "1G"),
    "bare_newline": ("normalize", "normalize"),
    "max_message_size": ("25M", "25M"),
    "handler": ("debug discard", ("debug", "discard")),
    "hostname": ("mx.example.com", "mx.example.com"),
    "tls_cert": ("cert.pem", "cert.pem"),
    "tls_key": ("key.pem", "key.pem"),
    "require_starttls": ("1", True),
    "user": ("nobody", "nobody"),
    "detach": ("true", True),
    "pid_file": ("daemon.pid", "daemon.pid"),
    "shutdown_timeout": ("8s", "8s"),
    "loop": ("asyncio", "asyncio"),
    "log_level": ("error", "error"),
    "log_to": ("stdout", "stdout"),
}
"""Of each option, what the environment may say, and what is understood."""

by_name = pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without options of whoever runs the tests."""
    for name in os.environ:
        if name.startswith("SMTPD_FORK_"):
            monkeypatch.delenv(name)
    return monkeypatch


def test_there_is_an_option_for_every_setting() -> None:
    fields = {field.name for field in msgspec.structs.fields(DaemonConfig)}
    assert {option.name for option in OPTIONS} == fields == WORDS.keys()


@by_name
def test_every_option_may_come_from_the_environment(
    option: SettingOption, environment: pytest.MonkeyPatch
) -> None:
    word, meaning = WORDS[str(option.name)]
    long = max(option.opts, key=len)
    variable = "SMTPD_FORK_" + long.removeprefix("--").replace("-", "_").upper()
    environment.setenv(variable, word)
    with command.make_context("smtpd-fork", []) as context:
        assert context.params[str(option.name)] == meaning
        assert context.get_parameter_source(str(option.name)) is ParameterSource.ENVIRONMENT


@by_name
def test_an_empty_variable_is_none(option: SettingOption, environment: pytest.MonkeyPatch) -> None:
    environment.setenv(str(option.envvar), "")
    with command.make_context("smtpd-fork", []) as context:
        assert not context.params[str(option.name)]


@by_name
def test_flags_win_over_the_environment(
    option: SettingOption, environment: pytest.MonkeyPatch
) -> None:
    word, _ = WORDS[str(option.name)]
    environment.setenv(str(option.envvar), "0" if option.is_flag else word)
    flag = max(option.opts, key=len)
    with command.make_context("smtpd-fork", [flag] if option.is_flag else [flag, "x"]) as context:
        wanted = True if option.is_flag else ("x",) if option.multiple else "x"
        assert context.params[str(option.name)] == wanted


def test_a_daemon_takes_its_options_from_the_environment(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    variables = {
        "SMTPD_FORK_LISTEN_ADDRESS": f"127.0.0.1:{port} unix:smtp.sock",
        "SMTPD_FORK_HANDLER": "discard",
        "SMTPD_FORK_HOSTNAME": "from.environment",
        "SMTPD_FORK_MAX_MESSAGE_SIZE": "5K",
        "SMTPD_FORK_PID_FILE": "daemon.pid",
    }
    options = ("--hostname", "from.flag")
    with Daemon(*options, cwd=tmp_path, environment=variables) as daemon:
        assert daemon.places == [f"127.0.0.1:{port}", f"unix:{tmp_path}/smtp.sock"]
        assert first_line(("127.0.0.1", port)).startswith("220 from.flag ")
        assert (tmp_path / "daemon.pid").read_text() == f"{daemon.process.pid}\n"
        with daemon.smtp() as client:
            assert ehlo(client)["size"] == "5120"


def test_a_flag_replaces_all_the_values_of_a_variable(tmp_path: Path) -> None:
    variables = {"SMTPD_FORK_LISTEN_ADDRESS": "127.0.0.2:0 127.0.0.3:0"}
    with Daemon(*LOCAL, cwd=tmp_path, environment=variables) as daemon:
        assert len(daemon.places) == 1
        with closing(connect(("127.0.0.1", daemon.port))) as client:
            assert client.recv(4) == b"220 "


def test_tls_1_1_is_not_spoken(tmp_path: Path, certificates: Certificates) -> None:
    tls = ("--tls-cert", str(certificates.cert), "--tls-key", str(certificates.key))
    old = ssl.create_default_context(cafile=str(certificates.ca))
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with Daemon(*LOCAL, *tls, cwd=tmp_path) as daemon, daemon.smtp() as client:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            client.starttls(context=old)
        client.close()
        with daemon.smtp() as other:
            other.starttls(context=certificates.client)


def test_a_handler_behind_a_sink_is_warned_of_by_its_name(tmp_path: Path) -> None:
    options = ("-l", "127.0.0.1:0", "--handler", "discard", "--handler", "debug")
    with Daemon(*options, cwd=tmp_path) as daemon:
        assert "WARNING the handler 'debug' never sees a message" in daemon.log


def test_a_variable_that_names_no_option_is_warned_of(tmp_path: Path) -> None:
    environment = {"SMTPD_FORK_LIMIT_CONECTIONS": "3"}
    options = ("-l", "127.0.0.1:0", "--handler", "discard")
    with Daemon(*options, cwd=tmp_path, environment=environment) as daemon:
        assert "no option has the name of SMTPD_FORK_LIMIT_CONECTIONS" in daemon.log
