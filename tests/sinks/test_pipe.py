"""Pipe: exit statuses, runs for recipients, and real servers."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from blockbuster import BlockBuster
from support.aiosmtpd_controller import client_of_aiosmtpd
from support.client import Client
from support.daemon import COMMAND, Daemon
from support.daemon import until as until_happened
from support.killing import load_until_killed
from support.peers import namespaces, proc
from support.pipe import LARGE, MESSAGE, reply_of, shell
from support.server import greeted, serve

from smtpd_fork.sinks.pipe import Pipe

if TYPE_CHECKING:
    from collections.abc import Callable


# -- exit statuses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "reply"),
    [
        (0, "250 2.0.0"),
        (1, "451 4.3.0"),
        (64, "451 4.3.0"),
        (65, "554 5.6.0"),
        (67, "550 5.1.1"),
        *((status, "451 4.3.0") for status in (69, 70, 71, 73, 74, 75, 76)),
        (77, "550 5.7.1"),
        (78, "451 4.3.0"),
        (127, "451 4.3.0"),
        (255, "451 4.3.0"),
    ],
)
async def test_exit_statuses_of_sysexits_are_used_and_others_are_temporary(
    status: int, reply: str
) -> None:
    assert (await reply_of(shell(f"exit {status}")))[:9] == reply


@pytest.mark.parametrize("name", ["KILL", "TERM", "PIPE", "SEGV"])
async def test_the_end_by_a_signal_is_a_temporary_failure(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await reply_of(shell(f"kill -{name} $$")))[:9] == "451 4.3.0"
    assert f"not delivered: sh: ended by SIG{name}" in caplog.text


async def test_the_log_has_the_status_and_the_first_line_of_the_output(
    caplog: pytest.LogCaptureFixture,
) -> None:
    script = "echo; printf 'over quota\\033[0m\\nsecond\\n' >&2; exit 75"
    assert (await reply_of(shell(script)))[:3] == "451"
    assert (
        "[77-1] 192.0.2.7:4711: not delivered: sh: exit status 75 (TEMPFAIL): over quota\\x1b[0m\n"
        in caplog.text
    )
    assert "second" not in caplog.text


async def test_the_output_is_not_sent_to_the_client() -> None:
    assert "secret" not in await reply_of(shell("echo secret; exit 67"))


async def test_the_status_is_unknown_if_other_code_waits_for_all_children(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The module subprocess would report 0."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert (await reply_of(shell("exit 0")))[:3] == "451"
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert "exit status unknown" in caplog.text


# -- runs and words ----------------------------------------------------------------------------


async def test_without_words_of_the_recipient_the_command_runs_once(tmp_path: Path) -> None:
    command = shell('cat >> "$1"', str(tmp_path / "out"))
    reply = await reply_of(command, "a@example.com", "b@example.com")
    assert reply == "250 2.0.0 Ok: delivered as 77-1-1"
    text = (tmp_path / "out").read_text()
    assert text.startswith(
        "Return-Path: <a@example.org>\nDelivered-To: a@example.com\nDelivered-To: b@example.com\n"
    )
    assert text.count("Subject: x\n\nhello\n") == 1


async def test_each_recipient_has_its_own_run_and_reply(tmp_path: Path) -> None:
    command = shell(
        'cat > "$1/$2"; case $2 in no) exit 67;; later) exit 75;; esac',
        *(str(tmp_path), "{user}"),
    )
    replies = await reply_of(command, *(f"{user}@example.com" for user in ("a", "no", "later")))
    assert [reply[:3] for reply in replies] == ["250", "550", "451"]
    text = (tmp_path / "a").read_text()
    assert text.count("Delivered-To") == 1
    assert "Delivered-To: a@example.com\n" in text


async def test_lmtp_clients_get_the_reply_of_each_recipient() -> None:
    pipe = Pipe(shell("exit $1", "{ext}"))
    async with serve(pipe, listen=["lmtp:127.0.0.1:0"]) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.reply()
            await client.say("LHLO x", "MAIL FROM:<a@example.org>")
            for status in (0, 67, 75):
                await client.say(f"RCPT TO:<a+{status}@example.com>")
            await client.say("DATA")
            client.send("Subject: x\r\n\r\n.\r\n")
            codes = [(await client.reply()).code for _ in range(3)]
    assert codes == [250, 550, 451]


async def test_an_address_that_would_be_an_option_is_refused_at_rcpt() -> None:
    async with greeted(Pipe(shell("exit 0", "{user}"))) as client:
        await client.say("MAIL FROM:<>")
        refused = await client.say("RCPT TO:<-rf@example.com>")
        assert (refused.code, refused.text[:5]) == (553, "5.1.3")
        assert (await client.deliver()).code == 250


async def test_an_address_that_would_be_an_option_is_refused_after_data_as_well() -> None:
    replies = await reply_of(shell("exit 0", "{user}"), "-rf@example.com", "b@example.com")
    assert [reply[:3] for reply in replies] == ["553", "250"]


async def test_a_mail_loop_is_not_delivered() -> None:
    looping = b"Delivered-To: b@example.com\r\n\r\n"
    assert (await reply_of(shell("exit 0"), content=looping))[:9] == "554 5.4.6"


async def test_the_event_loop_is_not_blocked() -> None:
    blockbuster = BlockBuster()
    async with greeted(Pipe(shell("cat > /dev/null", "{user}"))) as client:
        blockbuster.activate()
        try:
            assert (await client.deliver(LARGE.decode())).code == 250
        finally:
            blockbuster.deactivate()


# -- real servers ------------------------------------------------------------------------------


def test_it_runs_under_aiosmtpds_controller(tmp_path: Path) -> None:
    pipe = Pipe(shell('cat > "$1"', f"{tmp_path}/{{user}}", "{user}"))
    with client_of_aiosmtpd(pipe) as client:
        client.sendmail("a@example.com", ["b@example.com", "c@example.com"], MESSAGE)
        client.mail("")
        assert client.rcpt("-x@example.com")[0] == 553
    assert (tmp_path / "b").read_bytes().endswith(b"\nSubject: x\n\nhello\n")
    assert (tmp_path / "c").exists()


def a_script(directory: Path, text: str) -> Path:
    script = directory / "mda"
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)
    return script


def as_pid_1() -> list[str]:
    """Return the command of the daemon as process 1 of a new PID namespace."""
    return [*namespaces("--pid", "--fork", "--kill-child", "--mount-proc"), *COMMAND]


@pytest.mark.parametrize("command", [lambda: COMMAND, as_pid_1], ids=["daemon", "pid 1"])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_it_runs_under_the_daemon(
    loop: str, command: Callable[[], list[str]], tmp_path: Path
) -> None:
    script = a_script(tmp_path, f'cat > "{tmp_path}/$1"; echo "$CLIENT_ADDRESS" >> "{tmp_path}/$1"')
    handler = f"smtpd_fork.sinks.pipe:Pipe:{script} {{user}}"
    options = ("-l", "127.0.0.1:0", "--loop", loop, "--handler", handler)
    with Daemon(*options, cwd=tmp_path, command=command()) as daemon:
        for _ in range(3):
            daemon.deliver()
        for pid in (
            proc(daemon.process.pid, "task", daemon.process.pid, "children").read_text().split()
        ):
            os.kill(int(pid), signal.SIGTERM)  # unshare(1) does not forward the signal
    (name,) = {path.name for path in tmp_path.iterdir()} - {"mda"}
    assert (tmp_path / name).read_text().endswith("\nSubject: hi\n\nhello\n127.0.0.1\n")
    until_happened(lambda: not [pid for pid in os.listdir("/proc") if _runs(pid, script)], "an end")


def _runs(pid: str, script: Path) -> bool:
    try:
        return str(script).encode() in Path("/proc", pid, "cmdline").read_bytes()
    except OSError:
        return False


def test_after_kill_9_under_load_every_accepted_message_is_delivered(
    tmp_path: Path,
) -> None:
    script = a_script(tmp_path, f'cat > "{tmp_path}/t$$" && mv "{tmp_path}/t$$" "{tmp_path}/n$$"')
    handler = f"smtpd_fork.sinks.pipe:Pipe:{script}"
    with Daemon("-l", "127.0.0.1:0", "--handler", handler, cwd=tmp_path) as daemon:
        answered = load_until_killed(daemon, clients=4, enough=50)
    # The pipe may end within the last message, which was not answered.
    texts = [path.read_text() for path in tmp_path.glob("n*")]
    whole = [re.search(r"Subject: (\S+)\n\nx\n$", text) for text in texts]
    assert set(answered) <= {match[1] for match in whole if match}
