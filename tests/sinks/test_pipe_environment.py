"""The process of a pipe command: environment, descriptors, signals, limits and the message."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.mail import a_mail
from support.peers import proc
from support.pipe import reply_of, shell

from smtpd_fork.setting_types import SettingError
from smtpd_fork.sinks.pipe import Pipe


async def given_to(tmp_path: Path, script: str, **options: Any) -> str:
    """Return what a script writes to its file $1 after it has read the message."""
    command = shell(f"cat > /dev/null; {script}", str(tmp_path / "out"))
    assert (await reply_of(command, **options))[:3] == "250"
    return (tmp_path / "out").read_text()


async def test_the_environment_contains_nothing_else(
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
    assert set(text.split()) - {"10", "255"} <= {"0", "1", "2"}  # a descriptor of the shell


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


async def test_it_runs_in_a_new_session_and_in_the_root_directory(tmp_path: Path) -> None:
    proc()
    text = await given_to(tmp_path, 'cut -d " " -f 1,5,6 /proc/$$/stat > "$1"; pwd >> "$1"')
    numbers, directory = text.splitlines()
    assert len(set(numbers.split())) == 1
    assert directory == "/"


async def test_limits_of_memory_and_cpu_time_are_set(tmp_path: Path) -> None:
    proc()
    text = await given_to(
        tmp_path, '(ulimit -v; ulimit -t) > "$1"', max_memory=512 << 20, max_cpu=1.5
    )
    assert text.split() == [str(512 << 10), "2"]


@settings(max_examples=40)
@given(st.binary(max_size=300), st.sampled_from(["lf", "crlf"]), st.booleans())
def test_the_command_reads_the_whole_message(content: bytes, ends: Any, binary: bool) -> None:
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


async def test_a_process_whose_limits_cannot_be_set_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("resource.prlimit", fail)
    assert (await reply_of(shell("sleep 600"), max_memory=1 << 30))[:3] == "451"


def test_an_unsupported_limit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("resource.prlimit")
    with pytest.raises(SettingError, match=r"max_memory .*: this system cannot limit"):
        Pipe("sh", max_memory=1)
