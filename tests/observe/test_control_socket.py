"""The control socket: its permissions, its path, and errors of the command."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest
from support.control import CONTROL, SOCKET, ask, command, says
from support.daemon import COMMAND, LOCAL, PATIENCE, Daemon, Detached, end, run, until
from support.peers import needs_root, peer
from support.place import only_line

from smtpd_fork.control_protocol import MAX_REPLY, MAX_REQUEST
from smtpd_fork.observe.control import open_control

if TYPE_CHECKING:
    from pathlib import Path

NOBODY = 65534


# -- the path ----------------------------------------------------------------------------------


def test_only_the_owner_can_use_the_socket_with_any_umask(tmp_path: Path) -> None:
    open_umask = ["sh", "-c", 'umask 0; exec "$0" "$@"', *COMMAND]
    with Daemon(*LOCAL, *CONTROL, cwd=tmp_path, command=open_umask):
        assert stat.S_IMODE((tmp_path / SOCKET).stat().st_mode) == 0o600


def test_the_socket_has_its_mode_before_listen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mode is checked within listen(2): before it no process can connect."""
    modes = []
    listen = socket.socket.listen

    class Watched(socket.socket):
        def listen(self, backlog: int = 1, /) -> None:
            modes.append(stat.S_IMODE((tmp_path / SOCKET).stat().st_mode))
            listen(self, backlog)

    monkeypatch.setattr(socket, "socket", Watched)
    open_control(str(tmp_path / SOCKET)).close()
    assert modes == [0o600]


def test_the_socket_of_a_dead_daemon_is_replaced(tmp_path: Path) -> None:
    with Daemon(*LOCAL, *CONTROL, cwd=tmp_path) as dead:
        dead.stop(signal.SIGKILL)
    assert (tmp_path / SOCKET).exists()
    ended = command(tmp_path, "status")
    assert ended.returncode == os.EX_UNAVAILABLE
    with Daemon(*LOCAL, *CONTROL, cwd=tmp_path) as daemon:
        assert ask(tmp_path, "status")["pid"] == daemon.process.pid


def test_the_socket_of_a_running_daemon_is_not_replaced(daemon: Daemon, tmp_path: Path) -> None:
    ended = run(*LOCAL, *CONTROL, cwd=tmp_path)
    assert ended.returncode == os.EX_OSERR
    assert "another program answers there (from --control)" in only_line(ended)
    assert ask(tmp_path, "status")["pid"] == daemon.process.pid


@pytest.mark.parametrize(
    ("path", "status"),
    [("file", os.EX_CANTCREAT), ("none/x", os.EX_CANTCREAT), ("x" * 200, os.EX_USAGE)],
)
def test_the_error_names_a_path_that_cannot_be_used(tmp_path: Path, path: str, status: int) -> None:
    (tmp_path / "file").write_text("somebody's")
    ended = run(*LOCAL, "--control", path, cwd=tmp_path)
    assert ended.returncode == status
    assert path in only_line(ended)
    assert "--control" in ended.stderr
    assert (tmp_path / "file").read_text() == "somebody's"


def test_a_failed_start_leaves_no_socket(tmp_path: Path) -> None:
    ended = run(*LOCAL, *CONTROL, "--handler", "nosuch", cwd=tmp_path)
    assert only_line(ended)
    assert not (tmp_path / SOCKET).exists()


def test_a_detached_daemon_has_the_socket_and_removes_it(tmp_path: Path) -> None:
    with Detached(*LOCAL, *CONTROL, cwd=tmp_path) as daemon:
        assert ask(tmp_path, "status")["pid"] == daemon.pid
        daemon.stop()
    assert not (tmp_path / SOCKET).exists()


# -- permissions -------------------------------------------------------------------------------


def test_the_socket_belongs_to_the_user_and_the_cleanup_process_removes_it(
    public: Path, command_for_nobody: list[str]
) -> None:
    (public / "run").mkdir()
    path = public / "run" / SOCKET
    options = (*LOCAL, "-u", "nobody", "--control", str(path))
    for number in (signal.SIGTERM, signal.SIGKILL):
        with Daemon(*options, cwd=public, command=command_for_nobody) as daemon:
            status = path.stat()
            assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (NOBODY, 0o600)
            words = ("status", "--control", str(path))
            for user in ("nobody", None):  # the user of the daemon, and root
                ended = run(*words, cwd=public, command=command_for_nobody, user=user)
                assert (ended.returncode, ended.stderr) == (0, "")
            daemon.stop(number)
        until(lambda: not path.exists(), "the cleanup process is done")


@pytest.mark.parametrize("open_mode", [False, True], ids=["0600", "0666"])
def test_another_user_is_refused_even_if_the_mode_allows_it(
    public: Path, command_for_nobody: list[str], *, open_mode: bool
) -> None:
    needs_root()
    setpriv = [peer("setpriv"), "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    with Daemon(*LOCAL, *CONTROL, cwd=public, command=command_for_nobody) as daemon:
        if open_mode:
            (public / SOCKET).chmod(0o666)
        for words in (("status",), ("kick", "x"), ("drain",)):
            ended = run(*words, *CONTROL, cwd=public, command=[*setpriv, *command_for_nobody])
            assert ended.returncode == os.EX_NOPERM
            assert "only root and" in only_line(ended)
        if open_mode:
            daemon.wait_for(f"control: uid {NOBODY}, pid \\d+ was refused: permission")
        daemon.deliver()
        assert json.loads(says(public, "status", "--json"))["state"] == "serving"


# -- invalid replies ---------------------------------------------------------------------------

EVIL = "\x1b]0;owned\x07\x9b2J\u202e[red]x[/red]"
STATUS_REPLY = {
    "v": 1, "ok": True, "version": EVIL, "pid": 1, "hostname": EVIL, "state": EVIL, "seconds": 1,
    "sessions": 1, "limit": 1, "phases": {EVIL: 1}, "clients": 1,
    "top": [{"client": EVIL, "sessions": 1}], "admitted": 1, "refused": 1, "rules": {EVIL: 1},
    "listeners": [EVIL], "limits_changed": [EVIL],
}  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (json.dumps(STATUS_REPLY, ensure_ascii=False).encode() + b"\n", os.EX_OK),
        (b'{"v":1,"ok":false,"fault":"failed","text":"\xc2\x9b2J"}\n', os.EX_SOFTWARE),
        (b'{"v":1,"ok":false,"fault":"new","text":"x"}\n', os.EX_PROTOCOL),
        (b'{"v":1,"ok":true}\n', os.EX_PROTOCOL),
        (b'{"v":9,"ok":true}\n', os.EX_PROTOCOL),
        (b"220 mx.example.com ESMTP\r\n", os.EX_PROTOCOL),
        (b"[]\n", os.EX_PROTOCOL),
        (b"[" * 100_000 + b"\n", os.EX_PROTOCOL),
        (b"x" * (MAX_REPLY + (1 << 17)), os.EX_PROTOCOL),
        (b"", os.EX_UNAVAILABLE),
        (b'{"v":1', os.EX_UNAVAILABLE),
    ],
    ids=[
        "evil",
        "fault",
        "new fault",
        "less",
        "version",
        "smtp",
        "list",
        "deep",
        "long",
        "eof",
        "half",
    ],
)
def test_the_command_ends_with_an_error_line_after_an_invalid_reply(
    tmp_path: Path, answer: bytes, status: int
) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / SOCKET))
        listening.listen()
        listening.settimeout(PATIENCE)

        def reply() -> None:
            sock, _ = listening.accept()
            with sock:
                sock.recv(MAX_REQUEST)
                try:
                    sock.sendall(answer)
                except OSError:
                    return  # the reader has closed the connection

        thread = threading.Thread(target=reply)
        thread.start()
        ended = command(tmp_path, "status")
        thread.join(PATIENCE)
    assert ended.returncode == status, ended
    assert all(char.isprintable() or char == "\n" for char in ended.stdout + ended.stderr)
    if status:
        assert only_line(ended)


def test_a_closed_pipe_is_not_an_error(daemon: Daemon, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    words = ("status", "--watch", *CONTROL)
    process = subprocess.Popen(
        [*COMMAND, *words], cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    try:
        _, complaint = process.communicate(timeout=PATIENCE)
        assert (process.returncode, complaint) == (0, b"")
    finally:
        end(process)
