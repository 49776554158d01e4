"""Reloads: other settings hold from now on, sessions go on, and a bad file changes nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import smtplib
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.daemon import PATIENCE, Daemon, Detached, messages
from support.daemon import until as wait_until
from support.peers import peer
from support.server import serve, until

from smtpd_fork import Config, SmtpdForkError
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from pathlib import Path

    from support.tls import Certificates

    from smtpd_fork import Server

FIRST = """
hostname = "one.example"
log-level = "info"
[[listener]]
address = "127.0.0.1"
port = {one}
[[handler]]
use = "maildir"
argument = "first"
[gate]
max-from-ip = 5
"""

SECOND = """
hostname = "two.example"
log-level = "debug"
[[listener]]
address = "127.0.0.1"
port = {one}
[[listener]]
address = "127.0.0.2"
port = {two}
[[handler]]
use = "maildir"
argument = "second"
[gate]
max-from-ip = 2
"""


def free_port(host: str) -> int:
    with socket.create_server((host, 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def reload(daemon: Daemon, path: Path, text: str, says: str) -> None:
    path.write_text(text)
    daemon.signal(signal.SIGHUP)
    daemon.wait_for(says)


def deliver(client: smtplib.SMTP, body: str) -> None:
    client.sendmail("a@example.com", ["b@example.com"], f"Subject: x\r\n\r\n{body}\r\n")


def test_all_that_a_file_says_holds_after_a_reload(tmp_path: Path) -> None:
    ports = {"one": free_port("127.0.0.1"), "two": free_port("127.0.0.2")}
    path = tmp_path / "smtpd-fork.toml"
    path.write_text(FIRST.format_map(ports))
    with Daemon("--config", str(path), cwd=tmp_path) as daemon, daemon.smtp() as before:
        assert before.ehlo()[1].startswith(b"one.example")
        reload(daemon, path, SECOND.format_map(ports), "settings were read again")
        assert before.ehlo()[1].startswith(b"one.example")  # as it began
        deliver(before, "old")
        with smtplib.SMTP("127.0.0.2", ports["two"]) as after:
            assert after.ehlo()[1].startswith(b"two.example")
            deliver(after, "new")
            with pytest.raises(smtplib.SMTPConnectError, match="421"):
                daemon.smtp()  # two of 127.0.0.1 are in, and no more may be
        reload(daemon, path, FIRST.format_map(ports), "settings were read again")
        daemon.wait_for("no longer listening on 127.0.0.2")
        with pytest.raises(ConnectionRefusedError):
            smtplib.SMTP("127.0.0.2", ports["two"])
    assert "old" in messages(tmp_path / "first")[0]
    assert "new" in messages(tmp_path / "second")[0]


def test_a_file_that_is_wrong_changes_nothing_and_is_told(tmp_path: Path) -> None:
    ports = {"one": free_port("127.0.0.1"), "two": free_port("127.0.0.2")}
    good = FIRST.format_map(ports)
    path = tmp_path / "smtpd-fork.toml"
    path.write_text(good)
    (tmp_path / "in the way").touch()
    with (
        Daemon("--config", str(path), cwd=tmp_path) as daemon,
        socket.create_server(("127.0.0.2", ports["two"])),
    ):
        for text, says in (
            (good + "x = [", rf"all stays as it was: {path}: "),
            (good + "max-from-ipp = 3", "is max-from-ip meant"),
            (good.replace("= 5", "= -5"), rf"{path}: gate.max-from-ip -5: "),
            (good.replace('"maildir"', '"no:handler"'), r"no:handler:\*\*\*"),
            (SECOND.format_map(ports), rf"address is in use .*\(from {path}: listener\)"),
            (good + 'deny = "/no/such/list"', "No such file"),
            (good.replace('"first"', '"in the way"'), "all stays as it was: .*in the way"),
        ):
            reload(daemon, path, text, says)
            with daemon.smtp() as client:
                assert client.ehlo()[1].startswith(b"one.example")
        path.unlink()
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("cannot read")
        with daemon.smtp() as client:
            deliver(client, "still here")
    assert len(messages(tmp_path / "first")) == 1


def test_what_takes_a_restart_is_said_to(tmp_path: Path) -> None:
    path = tmp_path / "smtpd-fork.toml"
    text = 'listen = "127.0.0.1:0"\nhandler = "discard"\n'
    path.write_text(text)
    with Daemon("--config", str(path), cwd=tmp_path) as daemon:
        reload(daemon, path, f"{text}pid-file = 'x'\n", "pid_file was changed: it takes a restart")
        daemon.wait_for("settings were read again")
        daemon.deliver()


def test_flags_still_win_after_a_reload(tmp_path: Path) -> None:
    path = tmp_path / "smtpd-fork.toml"
    path.write_text('hostname = "file.example"\nlisten = "127.0.0.1:0"\n')
    options = ("--config", str(path), "--hostname", "flag.example", "--handler", "discard")
    with Daemon(*options, cwd=tmp_path) as daemon:
        reload(daemon, path, 'hostname = "x"\nlisten = "127.0.0.1:0"\n', "read again")
        with daemon.smtp() as client:
            assert client.ehlo()[1].startswith(b"flag.example")


def test_a_detached_daemon_knows_relative_paths_by_the_folder_of_its_start(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/deny").write_text("127.0.0.9\n")
    path = tmp_path / "smtpd-fork.toml"
    path.write_text('listen = "127.0.0.1:0"\ndeny = "lists/deny"\n[[handler]]\nuse = "discard"\n')
    with Detached("--config", "smtpd-fork.toml", cwd=tmp_path) as daemon:
        path.write_text(path.read_text().replace('"discard"', '"maildir"\nargument = "here"'))
        os.kill(daemon.pid, signal.SIGHUP)
        wait_until(lambda: "settings were read again" in daemon.text, "the reload")
        with daemon.smtp() as client:
            deliver(client, "hello")
    assert len(messages(tmp_path / "here")) == 1


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_under_a_steady_load_no_message_is_lost_and_nobody_is_refused(
    tmp_path: Path, loop: str
) -> None:
    """Postfix's smtp-source ends with the first connection or message that fails."""
    path = tmp_path / "smtpd-fork.toml"
    address = f"127.0.0.1:{free_port('127.0.0.1')}"

    def write(folder: str) -> None:
        other = f"127.0.0.2:{free_port('127.0.0.2')}"
        path.write_text(
            f'loop = "{loop}"\nlisten = ["{address}", "{other}"]\n'
            f'handler = "maildir:{folder}"\n[gate]\nlimit-connections = 100\n'
        )

    folders = ["first", "second", "third", "fourth"]
    write(folders[0])
    with (
        Daemon("--config", str(path), cwd=tmp_path) as daemon,
        subprocess.Popen(
            [peer("smtp-source"), "-s", "10", "-m", "2000", "-l", "1000", "-f", "a@example.com",
             "-t", "b@example.com", f"inet:{address}"],
            stderr=subprocess.PIPE, text=True,
        ) as load,
    ):  # fmt: skip
        for number, folder in enumerate(folders[1:], 1):
            write(folder)
            daemon.signal(signal.SIGHUP)
            wait_until(lambda n=number: daemon.log.count("read again") == n, "a reload")  # type: ignore[misc]  # bound now
            wait_until(lambda f=folder: messages(tmp_path / f), "a message after it")  # type: ignore[misc]  # bound now
        assert load.communicate(timeout=PATIENCE)[1] == ""
        assert load.returncode == 0
        assert daemon.stop() == 0
    assert sum(len(messages(tmp_path / folder)) for folder in folders) == 2000


# -- as an embedder does it ----------------------------------------------------------------------


class Remembers(Discard):
    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = asyncio.Event()

    async def handle_EHLO(
        self, server: Any, session: Any, envelope: Any, name: str, replies: list[str]
    ) -> list[str]:
        session.host_name = name
        return [*replies[:-1], f"250-{self.name}", replies[-1]]

    async def close(self) -> None:
        self.closed.set()


def config_of(server: Server, **changes: Any) -> Config:
    return Config.build({"listen": ["127.0.0.1:0"], "max_from_ip": 0, **changes})


async def test_new_sessions_have_the_new_handler_and_the_old_one_ends_with_its_last() -> None:
    old, new = Remembers("OLD"), Remembers("NEW")
    async with serve(old) as server:
        inside = await Client.to(server.addresses[0])
        await inside.reply()
        await server.reload(handler=new)
        assert "OLD" in (await inside.say("EHLO x")).text
        async with await Client.to(server.addresses[0]) as other:
            await other.reply()
            assert "NEW" in (await other.say("EHLO x")).text
        assert not old.closed.is_set()
        assert (await inside.deliver("Subject: x\r\n\r\nx\r\n")).code == 250
        await inside.close()
        async with asyncio.timeout(20):
            await old.closed.wait()
        assert not new.closed.is_set()
    assert new.closed.is_set()


async def test_a_replaced_handler_is_closed_at_a_stop_whatever_its_sessions_do() -> None:
    old = Remembers("OLD")
    async with serve(old) as server:
        inside = await Client.to(server.addresses[0])
        await inside.reply()
        await server.reload(handler=Remembers("NEW"))
    assert old.closed.is_set()
    await inside.close()


async def test_a_listener_that_stays_loses_nobody_and_one_that_goes_answers_421() -> None:
    async with serve(Discard(), listen=["127.0.0.1:0"]) as server:
        kept = server.addresses[0]
        port = free_port("127.0.0.3")
        await server.reload(config_of(server, listen=["127.0.0.1:0", f"127.0.0.3:{port}"]))
        assert server.addresses[0] == kept
        assert server.addresses[1] == ("127.0.0.3", port)
        server.gate.pause()
        waiting = [await Client.to(address) for address in server.addresses]
        inside = server.gate.count
        await server.reload(config_of(server))
        assert server.addresses == [kept]
        assert (await waiting[1].reply()).code == 421
        server.gate.resume()
        assert (await waiting[0].reply()).code == 220
        assert inside == 0
        for client in waiting:
            await client.close()


async def test_sessions_of_a_listener_that_goes_go_on() -> None:
    async with serve(Discard()) as server:
        port = free_port("127.0.0.3")
        both = ["127.0.0.1:0", f"127.0.0.3:{port}"]
        await server.reload(config_of(server, listen=both))
        async with await Client.to(("127.0.0.3", port)) as client:
            assert (await client.greet()).code == 250
            await server.reload(config_of(server))
            assert server.audit() == []
            assert (await client.deliver("Subject: x\r\n\r\nx\r\n")).code == 250
        await until(lambda: server.gate.count == 0)


async def test_clients_in_the_greet_pause_are_seen_through_by_the_old_one() -> None:
    async with serve(Discard(), greet_pause=0.3) as server:
        first = await Client.to(server.addresses[0])
        await until(lambda: server.gate.count == 1)
        await server.reload(config_of(server, greet_pause="4m"))
        second = await Client.to(server.addresses[0])
        await until(lambda: server.gate.count == 2)
        assert server.audit() == []
        assert (await first.reply()).code == 220
        await server.reload(config_of(server))
        async with await Client.to(server.addresses[0]) as third:
            assert (await third.reply()).code == 220
        assert len(server._former) == 1
        await first.close()
    assert (await second.reply()).code == 421
    await second.close()


async def test_clients_who_wait_for_room_have_the_new_time_limit() -> None:
    async with serve(Discard(), limit_connections=1, when_full="defer:200") as server:
        inside = await Client.to(server.addresses[0])
        await inside.reply()
        waiting = await Client.to(server.addresses[0])
        await until(lambda: server._acceptor is not None and server._acceptor.held == 1)
        await server.reload(config_of(server, limit_connections=1, when_full="defer:0.1"))
        assert (await waiting.reply()).code == 421
        await inside.close()
        await waiting.close()


async def test_a_reload_that_fails_leaves_all_as_it_was() -> None:
    async with serve(Discard()) as server:
        before = server.config, server.chain, server.addresses
        with socket.create_server(("127.0.0.3", 0)) as taken:
            address = f"127.0.0.3:{taken.getsockname()[1]}"
            free = f"127.0.0.4:{free_port('127.0.0.4')}"
            with pytest.raises(SmtpdForkError, match="in use"):
                await server.reload(config_of(server, listen=[free, address]), handler=Discard())
        assert (server.config, server.chain, server.addresses) == before
        with pytest.raises(ConnectionRefusedError):
            await Client.to(("127.0.0.4", int(free.rpartition(":")[2])))


async def test_a_server_that_stopped_cannot_be_reloaded() -> None:
    async with serve(Discard()) as server:
        pass
    with pytest.raises(SmtpdForkError, match="not running"):
        await server.reload()


async def test_certificates_of_other_settings_hold_from_the_next_handshake(
    certificates: Certificates,
) -> None:
    async with serve(Discard()) as server:
        async with await Client.to(server.addresses[0]) as inside:
            assert "STARTTLS" not in (await inside.greet()).text
            tls = {"tls_cert": str(certificates.cert), "tls_key": str(certificates.key)}
            await server.reload(config_of(server, **tls))
            assert "STARTTLS" not in (await inside.say("EHLO x")).text  # as it began
        async with await Client.to(server.addresses[0]) as client:
            assert "STARTTLS" in (await client.greet()).text
            await client.start_tls(certificates.client)
            assert (await client.say("EHLO x")).code == 250
        with pytest.raises(SmtpdForkError, match="none"):
            await server.reload(config_of(server, tls_cert="none"))
        assert len(server.certificates) == 1
        await server.reload(config_of(server))
        assert server.certificates == ()
        async with await Client.to(server.addresses[0]) as client:
            assert "STARTTLS" not in (await client.greet()).text
