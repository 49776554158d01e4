"""Signals: messages in progress are completed, clients get 421, and the daemon ends."""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest
from support.daemon import LOCAL, PATIENCE, Daemon, messages, on_both_loops
from support.dialogue import begin_data, is_refused, last_word

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_session_gets_421_and_the_exit_status_is_0(
    tmp_path: Path, number: signal.Signals
) -> None:
    with Daemon(*LOCAL, cwd=tmp_path) as daemon:
        idle = daemon.smtp()
        daemon.signal(number)
        assert last_word(idle) == (421, b"4.3.2")
        assert daemon.process.wait(PATIENCE) == 0


@on_both_loops
def test_a_message_in_progress_is_completed_before_the_session_ends(
    tmp_path: Path, loop: str
) -> None:
    with Daemon("-l", "127.0.0.1:0", "--loop", loop, cwd=tmp_path) as daemon:
        client = daemon.smtp()
        begin_data(client)
        daemon.signal(signal.SIGTERM)
        daemon.wait_for("stopping: 1 session open")
        assert is_refused(daemon.port)
        client.send(b" a line\r\n.\r\n")
        assert client.getreply()[0] == 250
        assert last_word(client) == (421, b"4.3.2")
        assert daemon.process.wait(PATIENCE) == 0
    (text,) = messages(tmp_path / "Maildir")
    assert text.endswith("\n\nand half a line\n")


def test_a_client_in_the_backlog_gets_421(tmp_path: Path) -> None:
    with Daemon(*LOCAL, "-c", "1", cwd=tmp_path) as daemon:
        inside = daemon.smtp()
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE) as waiting:
            daemon.wait_for("clients wait in the backlog")
            daemon.signal(signal.SIGTERM)
            assert waiting.recv(9) == b"421 4.3.2"
        assert last_word(inside) == (421, b"4.3.2")
        assert daemon.process.wait(PATIENCE) == 0


def test_a_client_that_waits_with_a_time_limit_gets_421(tmp_path: Path) -> None:
    options = ("-c", "1", "--when-full", "defer:60")
    with Daemon(*LOCAL, *options, cwd=tmp_path) as daemon:
        inside = daemon.smtp()
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE) as waiting:
            daemon.signal(signal.SIGTERM)
            assert waiting.recv(9) == b"421 4.3.2"
        assert last_word(inside) == (421, b"4.3.2")
        assert daemon.process.wait(PATIENCE) == 0


def test_a_message_that_stalls_is_cut_after_the_time_limit(tmp_path: Path) -> None:
    options = ("-l", "127.0.0.1:0", "--shutdown-timeout", "300ms")
    with Daemon(*options, cwd=tmp_path) as daemon:
        client = daemon.smtp()
        begin_data(client)
        begun = time.monotonic()
        assert daemon.stop() == os.EX_TEMPFAIL
        assert 0.25 < time.monotonic() - begun < 5
        client.close()
        assert "WARNING 1 session closed early" in daemon.log
    assert messages(tmp_path / "Maildir") == []
    assert list((tmp_path / "Maildir/tmp").iterdir()) == []


@on_both_loops
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_immediately(
    tmp_path: Path, loop: str, second: signal.Signals
) -> None:
    options = ("--pid-file", "daemon.pid", "--shutdown-timeout", "60", "--loop", loop)
    with Daemon(*LOCAL, *options, cwd=tmp_path) as daemon:
        client = daemon.smtp()
        begin_data(client)
        daemon.signal(signal.SIGTERM)
        daemon.wait_for("stopping: 1 session open")
        begun = time.monotonic()
        assert daemon.stop(second) == os.EX_TEMPFAIL
        assert time.monotonic() - begun < 5
        client.close()
        assert f"WARNING {second.name} again: stopping at once" in daemon.log
        assert "Traceback" not in daemon.log
        assert daemon.log.endswith("INFO stopped")
    assert not (tmp_path / "daemon.pid").exists()


def test_simultaneous_signals_do_no_harm(tmp_path: Path) -> None:
    with Daemon(*LOCAL, "--pid-file", "daemon.pid", cwd=tmp_path) as daemon:
        for _ in range(20):
            daemon.signal(signal.SIGTERM)
            daemon.signal(signal.SIGINT)
        assert daemon.process.wait(PATIENCE) == 0
    assert "Traceback" not in daemon.log
    assert not (tmp_path / "daemon.pid").exists()


def test_sighup_does_not_end_it(tmp_path: Path) -> None:
    with Daemon(*LOCAL, cwd=tmp_path) as daemon, daemon.smtp() as client:
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("SIGHUP")
        assert client.noop()[0] == 250
        daemon.deliver()
        client.quit()
        assert daemon.stop() == 0


def test_a_client_that_disappears_does_not_delay_the_stop(tmp_path: Path) -> None:
    with Daemon(*LOCAL, cwd=tmp_path) as daemon:
        client = daemon.smtp()
        begin_data(client)
        daemon.signal(signal.SIGTERM)
        daemon.wait_for("stopping: 1 session open")
        client.close()
        begun = time.monotonic()
        assert daemon.process.wait(PATIENCE) == 0
        assert time.monotonic() - begun < 5


def test_a_port_can_be_bound_again_immediately(tmp_path: Path) -> None:
    """Connections that the old daemon has closed are in TIME_WAIT."""
    with Daemon(*LOCAL, cwd=tmp_path) as old:
        idle = old.smtp()
        old.signal(signal.SIGTERM)
        assert last_word(idle) == (421, b"4.3.2")
        assert old.process.wait(PATIENCE) == 0
        port = old.port
    with Daemon("-l", f"127.0.0.1:{port}", "--handler", "discard", cwd=tmp_path) as new:
        new.deliver()
