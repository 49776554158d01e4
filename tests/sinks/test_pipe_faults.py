"""Commands of pipe that misbehave, and a system that cannot start them."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from support.daemon import is_alive
from support.mail import a_mail
from support.peers import proc
from support.pipe import LARGE, reply_of, shell
from support.server import greeted, until

from smtpd_fork.errors import CannotCreateError
from smtpd_fork.sinks.pipe import Pipe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@pytest.mark.parametrize("script", ["exec <&-; exit 0", "exit 0", "head -c 10 > /dev/null"])
async def test_a_command_need_not_read_the_message(script: str) -> None:
    assert (await reply_of(shell(script), content=LARGE))[:3] == "250"


async def test_endless_output_is_discarded(caplog: pytest.LogCaptureFixture) -> None:
    script = "cat > /dev/null; head -c 100000000 /dev/zero; exit 75"
    assert (await reply_of(shell(script), content=LARGE))[:3] == "451"
    assert max(map(len, caplog.messages)) < 400


async def test_output_before_reading_the_message_does_not_deadlock() -> None:
    script = "head -c 1000000 /dev/zero; cat > /dev/null; head -c 1000000 /dev/zero"
    assert (await reply_of(shell(script), content=LARGE))[:3] == "250"


async def test_a_child_that_keeps_the_output_open_is_not_waited_for(tmp_path: Path) -> None:
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


async def test_finished_runs_keep_their_replies_after_a_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpd_fork.sinks.pipe.TERM_SECONDS", 0.2)
    pipe = Pipe(
        shell('case $1 in slow) sleep 600;; esac; touch "$2"', "{user}", f"{tmp_path}/{{user}}")
    )
    task = asyncio.create_task(deliver(pipe, "slow@example.com", "fast@example.com"))
    await until((tmp_path / "fast").exists)
    await until(lambda: pipe._slots._free == 7)
    task.cancel()
    assert [reply[:3] for reply in await task] == ["451", "250"]
    await pipe.close()


async def deliver(pipe: Pipe, *recipients: str) -> Sequence[str]:
    return await pipe.deliver(a_mail(*recipients))


async def test_the_number_of_processes_and_the_wait_are_limited(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = Pipe(
        shell('touch "$1/$2"; until [ -e "$1/go" ]; do sleep 0.01; done', str(tmp_path), "{user}"),
        max_processes=2,
        wait=0.2,
    )
    first = asyncio.create_task(deliver(pipe, "a@example.com", "b@example.com"))
    await until(lambda: all((tmp_path / name).exists() for name in "ab"))
    replies = await deliver(pipe, "c@example.com", "d@example.com")
    assert [reply[:9] for reply in replies] == ["451 4.3.2"] * 2
    assert "not delivered: max-processes: 2 commands are running" in caplog.text
    waiting = asyncio.create_task(deliver(pipe, "e@example.com"))
    await until(lambda: len(pipe._slots._waiting) == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(pipe._slots._waiting) == 0
    next_one = asyncio.create_task(deliver(pipe, "f@example.com"))
    await until(lambda: len(pipe._slots._waiting) == 1)

    (tmp_path / "go").touch()
    assert [reply[:3] for reply in [*await first, *await next_one]] == ["250"] * 3
    assert not any((tmp_path / name).exists() for name in "cde")
    assert pipe._slots._free == 2
    await pipe.close()


@pytest.mark.parametrize("command", ["/nowhere/mda", "no-such-mda-anywhere"])
def test_a_missing_program_is_an_error_at_the_start(command: str) -> None:
    pipe = Pipe(f"{command} x")
    for look in (pipe.check, pipe.prepare):
        with pytest.raises(CannotCreateError, match=f"pipe: the command {command} (does|is) not"):
            look()


def test_a_program_that_cannot_be_executed_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "mda").write_text("#!/bin/sh\n")
    for path in (tmp_path / "mda", tmp_path):
        with pytest.raises(CannotCreateError, match="cannot be executed by"):
            Pipe(str(path)).check()


@pytest.mark.parametrize("first_line", ["", "#!/nowhere/sh\n"])
async def test_a_failure_to_start_the_program_is_temporary(
    first_line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = tmp_path / "mda"
    script.write_text(f"{first_line}exit 67\n")
    script.chmod(0o755)
    assert (await reply_of(str(script)))[:3] == "451"
    assert f"not delivered: {script}: [Errno" in caplog.text


async def test_the_end_is_detected_without_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    assert (await reply_of(shell("exit 67")))[:3] == "550"


async def test_no_descriptor_and_no_thread_is_left() -> None:
    """Compare descriptors and threads before and after."""
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
