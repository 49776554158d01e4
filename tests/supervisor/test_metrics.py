"""Metrics and status page of several processes."""

from __future__ import annotations

import json
import os
import re
import signal
from typing import TYPE_CHECKING
from urllib.error import HTTPError

import pytest
from support.daemon import LOCAL, Daemon, until
from support.peers import proc
from support.supervised import children, figures, page

from smtpd_fork.observe.metrics import METRICS, SUPERVISOR_METRICS

if TYPE_CHECKING:
    from pathlib import Path


def test_the_metrics_of_all_processes_are_added_and_counters_never_decrease(tmp_path: Path) -> None:
    proc()  # skip without /proc
    options = (*LOCAL, "--processes", "2", "-c", "30", "--metrics", "127.0.0.1:0")
    with Daemon(*options, cwd=tmp_path) as daemon:
        clients = [daemon.smtp(source=f"127.0.1.{n % 5 + 1}") for n in range(10)]
        for client in clients:
            client.sendmail("a@example.com", ["b@example.com"], "Subject: hi\r\n\r\nhello\r\n")
        until(lambda: figures(daemon)[("smtpd_fork_admissions_total",)] == 10, "all are counted")
        seen = figures(daemon)
        assert seen[("smtpd_fork_sessions_limit",)] == 30
        assert seen[("smtpd_fork_sessions", "command")] == 10
        assert seen[("smtpd_fork_clients",)] == 5, "a client of two processes is one"
        assert seen[("smtpd_fork_messages_total", "accepted")] == 10
        assert seen[("smtpd_fork_replies_total", "2xx", "RCPT")] == 10
        assert seen[("smtpd_fork_sink_seconds_count", "discard")] == 10
        assert seen[("smtpd_fork_ready",)] == 1
        assert seen[("smtpd_fork_processes",)] == 2
        assert seen[("process_open_fds",)] > 20
        names = set(re.findall(r"^# HELP (\S+)", page(daemon, "metrics"), re.MULTILINE))
        assert names == {row.name for row in (*METRICS, *SUPERVISOR_METRICS)}

        shown = json.loads(page(daemon, "status.json"))
        assert (shown["sessions"], shown["clients"], shown["limit"]) == (10, 5, 30)
        assert len(shown["oldest_sessions"]) == 10
        assert shown["messages"]["accepted"] == 10
        assert [each["address"] for each in shown["listeners"]] == [f"127.0.0.1:{daemon.port}"]
        assert "10" in page(daemon, "")
        assert page(daemon, "readyz") == "serving\n"

        for _, pid in re.findall(r"process (\d) of 2 serves, pid (\d+)", daemon.log):
            os.kill(int(pid), signal.SIGKILL)
        until(
            lambda: figures(daemon)[("smtpd_fork_processes_replaced_total",)] == 2, "both are back"
        )
        seen = figures(daemon)
        assert seen[("smtpd_fork_messages_total", "accepted")] == 10
        assert seen[("smtpd_fork_sink_seconds_count", "discard")] == 10
        state = ("smtpd_fork_sessions", "command")
        until(lambda: figures(daemon).get(state) == 0, "new metrics, without sessions")
        for client in clients:
            client.close()


def test_processes_are_not_ready_while_their_fleet_is_out_of_reach(tmp_path: Path) -> None:
    options = ("--fleet", "unix:/nosuch", "--when-fleet-down", "refuse", "--processes", "2")
    with Daemon(*LOCAL, *options, "--metrics", "127.0.0.1:0", cwd=tmp_path) as daemon:
        with pytest.raises(HTTPError, match="503"):
            page(daemon, "readyz")
        seen = figures(daemon)
        assert seen[("smtpd_fork_ready",)] == 0
        assert seen[("smtpd_fork_fleet_state", "down")] == 1


def test_a_process_that_does_not_answer_delays_no_readiness_probe(tmp_path: Path) -> None:
    with Daemon(*LOCAL, "--processes", "2", "--metrics", "127.0.0.1:0", cwd=tmp_path) as daemon:
        first = children(daemon)[0]
        os.kill(first, signal.SIGSTOP)
        try:
            assert page(daemon, "readyz", seconds=4) == "serving\n"
        finally:
            os.kill(first, signal.SIGCONT)
