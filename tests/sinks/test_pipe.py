"""Pipe: what the end of a command means, and commands that misbehave."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from blockbuster import BlockBuster
from hypothesis import given, settings
from hypothesis import strategies as st
from support.aiosmtpd_controller import client_of_aiosmtpd
from support.client import Client
from support.daemon import COMMAND, Daemon
from support.daemon import until as until_happened
from support.killing import load_until_killed
from support.mail import a_mail
from support.peers import namespaces, proc
from support.server import greeted, serve, until

from smtpd_fork.errors import CannotCreateError
from smtpd_fork.setting_types import SettingError
from smtpd_fork.sinks.pipe import Pipe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MESSAGE = b"Subject: x\r\n\r\nhello\r\n"

LARGE = b"Subject: x\r\n\r\n" + b"y" * 78 * 50_000 + b"\r\n"


def shell(script: str, *words: str) -> str:
    """Return the command that runs a script in a shell."""
    quoted = script.replace("'", "'\\''").replace("{", "{{").replace("}", "}}")
    return " ".join(["sh", "-c", f"'{quoted}'", "sh", *words])


async def reply_of(command: str, *recipients: str, content: bytes = MESSAGE, **options: Any) -> Any:
    pipe = Pipe(command, **options)
    pipe.prepare()
    try:
        return await pipe.deliver(a_mail(*recipients, content=content))
    finally:
        await pipe.close()


def is_alive(pid: int) -> bool:
    try:
        state = proc(pid, "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # a zombie is for process 1


# -- what the exit status means ----------------------------------------------------------------


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
async def test_the_exit_status_is_that_of_sysexits_and_what_is_unknown_is_temporary(
    status: int, reply: str
) -> None:
    assert (await reply_of(shell(f"exit {status}")))[:9] == reply


@pytest.mark.parametrize("name", ["KILL", "TERM", "PIPE", "SEGV"])
async def test_a_command_that_a_signal_ends_is_temporary(
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
        "[s1] 192.0.2.1:4025: not delivered: sh: exit status 75 (TEMPFAIL): over quota\\x1b[0m\n"
        in caplog.text
    )
    assert "second" not in caplog.text


async def test_the_output_is_not_told_to_the_client() -> None:
    assert "secret" not in await reply_of(shell("echo secret; exit 67"))


async def test_where_something_else_waits_for_all_children_the_status_is_unknown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """subprocess would say 0."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert (await reply_of(shell("exit 0")))[:3] == "451"
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert "exit status unknown" in caplog.text


# -- runs and words ----------------------------------------------------------------------------


async def test_without_words_of_the_recipient_there_is_one_run_for_all(tmp_path: Path) -> None:
    command = shell('cat >> "$1"', str(tmp_path / "out"))
    reply = await reply_of(command, "a@example.com", "b@example.com")
    assert reply == "250 2.0.0 Ok: delivered as s1-1"
    text = (tmp_path / "out").read_text()
    assert text.startswith(
        "Return-Path: <a@example.org>\nDelivered-To: a@example.com\nDelivered-To: b@example.com\n"
    )
    assert text.count("Subject: x\n\nhello\n") == 1


async def test_each_recipient_has_a_run_and_a_reply_of_its_own(tmp_path: Path) -> None:
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


async def test_an_address_that_would_be_an_option_is_refused_at_the_end_as_well() -> None:
    replies = await reply_of(shell("exit 0", "{user}"), "-rf@example.com", "b@example.com")
    assert [reply[:3] for reply in replies] == ["553", "250"]


async def test_a_mail_loop_is_not_delivered() -> None:
    looping = b"Delivered-To: b@example.com\r\n\r\n"
    assert (await reply_of(shell("exit 0"), content=looping))[:9] == "554 5.4.6"


# -- what the command is given -----------------------------------------------------------------


async def given_to(tmp_path: Path, script: str, **options: Any) -> str:
    """Return what a script has written to its file $1, once it has read the message."""
    command = shell(f"cat > /dev/null; {script}", str(tmp_path / "out"))
    assert (await reply_of(command, **options))[:3] == "250"
    return (tmp_path / "out").read_text()


async def test_the_environment_holds_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc()
    monkeypatch.setenv("SMTPD_FORK_SECRET", "x")
    text = await given_to(tmp_path, 'cat /proc/$$/environ > "$1"')
    names = {each.partition("=")[0] for each in text.rstrip("\0").split("\0")}
    assert names == {
        *("PATH", "LANG", "SENDER", "QUEUE_ID", "CLIENT_ADDRESS", "CLIENT_HELO"),
        *("CLIENT_HOSTNAME", "RECIPIENT", "DOMAIN", "EXTENSION"),
    }


async def test_no_descriptor_is_inherited(tmp_path: Path) -> None:
    proc()
    read, write = os.pipe()
    os.set_inheritable(write, True)
    try:
        text = await given_to(tmp_path, 'ls /proc/$$/fd > "$1"')
    finally:
        os.close(read)
        os.close(write)
    assert set(text.split()) - {"10", "255"} <= {"0", "1", "2"}  # the shell's own


async def test_signals_have_their_default_actions(tmp_path: Path) -> None:
    proc()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGALRM})
    try:
        text = await given_to(tmp_path, 'exec cat /proc/self/status > "$1"')
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert re.search(r"SigBlk:\t0+\n", text)
    ignored = re.search(r"SigIgn:\t(\w+)\n", text)
    assert ignored is not None
    assert not int(ignored[1], 16) & 1 << (signal.SIGPIPE - 1)


async def test_it_has_a_session_of_its_own_and_the_root_as_its_directory(tmp_path: Path) -> None:
    proc()
    text = await given_to(tmp_path, 'cut -d " " -f 1,5,6 /proc/$$/stat > "$1"; pwd >> "$1"')
    numbers, directory = text.splitlines()
    assert len(set(numbers.split())) == 1
    assert directory == "/"


async def test_limits_of_memory_and_processor_time_are_set(tmp_path: Path) -> None:
    proc()
    text = await given_to(
        tmp_path, '(ulimit -v; ulimit -t) > "$1"', max_memory=512 << 20, max_cpu=1.5
    )
    assert text.split() == [str(512 << 10), "2"]


@settings(max_examples=40)
@given(st.binary(max_size=300), st.sampled_from(["lf", "crlf"]), st.booleans())
def test_what_came_is_what_the_command_reads(content: bytes, ends: Any, binary: bool) -> None:
    came = b"X: y\r\n" + content

    async def deliver(out: Path) -> None:
        pipe = Pipe(shell('cat > "$1"', str(out)), line_ends=ends)
        mail = a_mail(content=came, body="BINARYMIME" if binary else "8BITMIME")
        assert str(await pipe.deliver(mail))[:3] == "250"
        await pipe.close()

    with TemporaryDirectory() as directory:
        asyncio.run(deliver(Path(directory, "out")))
        read = Path(directory, "out").read_bytes()
    unchanged = binary or ends == "crlf"
    assert read.endswith(
        b"\n\tnow\r\n" + came if unchanged else b"\n\tnow\n" + came.replace(b"\r\n", b"\n")
    )


async def test_a_large_message_arrives_whole(tmp_path: Path) -> None:
    command = shell('cat > "$1"', str(tmp_path / "out"))
    content = b"Subject: x\r\n\r\n" + b"".join(b"%d\r\n" % n for n in range(700_000))
    assert (await reply_of(command, content=content))[:3] == "250"
    assert (tmp_path / "out").read_bytes().endswith(content.replace(b"\r\n", b"\n"))


# -- commands that misbehave -------------------------------------------------------------------


@pytest.mark.parametrize("script", ["exec <&-; exit 0", "exit 0", "head -c 10 > /dev/null"])
async def test_a_command_need_not_read_the_message(script: str) -> None:
    assert (await reply_of(shell(script), content=LARGE))[:3] == "250"


async def test_endless_output_is_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    script = "cat > /dev/null; head -c 100000000 /dev/zero; exit 75"
    assert (await reply_of(shell(script), content=LARGE))[:3] == "451"
    assert max(map(len, caplog.messages)) < 400


async def test_output_before_the_message_is_read_blocks_neither() -> None:
    script = "head -c 1000000 /dev/zero; cat > /dev/null; head -c 1000000 /dev/zero"
    assert (await reply_of(shell(script), content=LARGE))[:3] == "250"


async def test_a_child_that_goes_on_with_the_output_open_is_not_waited_for(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {pid_file}; exit 0"
    assert (await reply_of(shell(script)))[:3] == "250"
    child = int(pid_file.read_text())
    assert is_alive(child)
    os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize(
    "script",
    [
        "sleep 600",
        "exec sleep 600",
        "trap '' TERM; sleep 600",
        "trap 'exit 0' TERM; sleep 600 & wait",
        "kill -STOP $$",
        "yes",
    ],
)
async def test_a_command_that_takes_too_long_is_killed_with_its_children(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpd_fork.sinks.pipe.TERM_SECONDS", 0.2)
    files = [tmp_path / name for name in ("command", "child")]
    command = shell(
        "echo $$ > $1; (trap '' TERM; sleep 600; sleep 600) & echo $! > $2; " + script,
        *map(str, files),
    )
    pipe = Pipe(command, timeout=0.3)
    async with greeted(pipe) as client:
        reply = await client.deliver(LARGE.decode())
        assert reply.code == 451
        pids = [int(path.read_text()) for path in files]
        await until(lambda: not any(map(is_alive, pids)))


async def test_runs_that_ended_in_time_keep_their_replies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpd_fork.sinks.pipe.TERM_SECONDS", 0.2)
    pipe = Pipe(
        shell('case $1 in slow) sleep 600;; esac; touch "$2"', "{user}", f"{tmp_path}/{{user}}")
    )
    task = asyncio.create_task(_deliver(pipe, "slow@example.com", "fast@example.com"))
    await until((tmp_path / "fast").exists)
    await until(lambda: pipe._slots._free == 7)
    task.cancel()
    assert [reply[:3] for reply in await task] == ["451", "250"]
    await pipe.close()


async def _deliver(pipe: Pipe, *recipients: str) -> Sequence[str]:
    return await pipe.deliver(a_mail(*recipients))


async def test_no_more_than_max_processes_run_at_once_and_waiting_is_bounded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = Pipe(
        shell('touch "$1/$2"; until [ -e "$1/go" ]; do sleep 0.01; done', str(tmp_path), "{user}"),
        max_processes=2,
        wait=0.2,
    )
    first = asyncio.create_task(_deliver(pipe, "a@example.com", "b@example.com"))
    await until(lambda: all((tmp_path / name).exists() for name in "ab"))
    replies = await _deliver(pipe, "c@example.com", "d@example.com")
    assert [reply[:9] for reply in replies] == ["451 4.3.2"] * 2
    assert "not delivered: 2 commands are running" in caplog.text
    waiting = asyncio.create_task(_deliver(pipe, "e@example.com"))
    await until(lambda: len(pipe._slots._waiting) == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(pipe._slots._waiting) == 0
    next_one = asyncio.create_task(_deliver(pipe, "f@example.com"))
    await until(lambda: len(pipe._slots._waiting) == 1)

    (tmp_path / "go").touch()
    assert [reply[:3] for reply in [*await first, *await next_one]] == ["250"] * 3
    assert not any((tmp_path / name).exists() for name in "cde")
    assert pipe._slots._free == 2
    await pipe.close()


@pytest.mark.parametrize("command", ["/nowhere/mda", "no-such-mda-anywhere"])
def test_a_program_that_is_not_there_is_an_error_of_the_start(command: str) -> None:
    pipe = Pipe(f"{command} x")
    for look in (pipe.check, pipe.prepare):
        with pytest.raises(CannotCreateError, match=f"pipe: the command {command} (does|is) not"):
            look()


def test_a_program_that_cannot_be_executed_is_an_error_of_the_start(tmp_path: Path) -> None:
    (tmp_path / "mda").write_text("#!/bin/sh\n")
    for path in (tmp_path / "mda", tmp_path):
        with pytest.raises(CannotCreateError, match="cannot be executed by"):
            Pipe(str(path)).check()


@pytest.mark.parametrize("first_line", ["", "#!/nowhere/sh\n"])
async def test_a_program_that_cannot_be_started_is_temporary(
    first_line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = tmp_path / "mda"
    script.write_text(f"{first_line}exit 67\n")
    script.chmod(0o755)
    assert (await reply_of(str(script)))[:3] == "451"
    assert f"not delivered: {script}: [Errno" in caplog.text


async def test_a_process_that_cannot_be_limited_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("resource.prlimit", fail)
    assert (await reply_of(shell("sleep 600"), max_memory=1 << 30))[:3] == "451"


def test_a_limit_that_the_system_does_not_have_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("resource.prlimit")
    with pytest.raises(SettingError, match=r"max_memory .*: this system cannot limit"):
        Pipe("sh", max_memory=1)


async def test_without_pidfd_the_end_is_seen_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    assert (await reply_of(shell("exit 67")))[:3] == "550"


async def test_nothing_is_left_open_or_running() -> None:
    """Neither descriptors nor threads."""
    descriptors = proc("self", "fd")
    await reply_of(shell("exit 0"), "a@b", "c@d", content=LARGE)
    threads = {each.name for each in threading.enumerate()}
    assert not any(name.startswith("pipe") for name in threads)
    before = set(os.listdir(descriptors))
    for script in ("exit 0", "exit 1", "exec /nowhere", "sleep 600"):
        with suppress(TimeoutError):
            await in_time(script)
    assert set(os.listdir(descriptors)) <= before


async def in_time(script: str) -> None:
    async with asyncio.timeout(0.3):
        await reply_of(shell(script))


async def test_a_message_for_which_no_thread_can_be_started_is_not_delivered_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("can't start new thread")

    pipe = Pipe(shell('echo x >> "$1"', str(tmp_path / "out")))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        assert str(await pipe.deliver(a_mail()))[:3] == "451"
    assert pipe._slots._free == 8
    assert str(await pipe.deliver(a_mail()))[:3] == "250"
    await pipe.close()
    assert (tmp_path / "out").read_text() == "x\n"


async def test_nothing_blocks_the_loop() -> None:
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


def as_pid_1() -> list[str]:
    """Return the daemon's command as process 1 of a namespace of its own."""
    return [*namespaces("--pid", "--fork", "--kill-child", "--mount-proc"), *COMMAND]


@pytest.mark.parametrize("command", [lambda: COMMAND, as_pid_1], ids=["daemon", "pid 1"])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_it_runs_under_the_daemon(
    loop: str, command: Callable[[], list[str]], tmp_path: Path
) -> None:
    script = tmp_path / "mda"
    script.write_text(
        f'#!/bin/sh\ncat > "{tmp_path}/$1"; echo "$CLIENT_ADDRESS" >> "{tmp_path}/$1"\n'
    )
    script.chmod(0o755)
    handler = f"smtpd_fork.sinks.pipe:Pipe:{script} {{user}}"
    options = ("-l", "127.0.0.1:0", "--loop", loop, "--handler", handler)
    with Daemon(*options, cwd=tmp_path, command=command()) as daemon:
        for _ in range(3):
            daemon.deliver()
        for pid in (
            proc(daemon.process.pid, "task", daemon.process.pid, "children").read_text().split()
        ):
            os.kill(int(pid), signal.SIGTERM)  # unshare(1) does not pass it on
    (name,) = {path.name for path in tmp_path.iterdir()} - {"mda"}
    assert (tmp_path / name).read_text().endswith("\nSubject: hi\n\nhello\n127.0.0.1\n")
    until_happened(lambda: not [pid for pid in os.listdir("/proc") if _runs(pid, script)], "an end")


def _runs(pid: str, script: Path) -> bool:
    try:
        return str(script).encode() in Path("/proc", pid, "cmdline").read_bytes()
    except OSError:
        return False


def test_after_kill_9_under_load_every_message_that_was_answered_250_is_delivered(
    tmp_path: Path,
) -> None:
    script = tmp_path / "mda"
    script.write_text(
        f'#!/bin/sh\ncat > "{tmp_path}/t$$" && mv "{tmp_path}/t$$" "{tmp_path}/n$$"\n'
    )
    script.chmod(0o755)
    handler = f"smtpd_fork.sinks.pipe:Pipe:{script}"
    with Daemon("-l", "127.0.0.1:0", "--handler", handler, cwd=tmp_path) as daemon:
        answered = load_until_killed(daemon, clients=4, enough=50)
    # The end of the message in hand may be the end of the pipe: that one was not answered.
    texts = [path.read_text() for path in tmp_path.glob("n*")]
    whole = [re.search(r"Subject: (\S+)\n\nx\n$", text) for text in texts]
    assert set(answered) <= {match[1] for match in whole if match}
