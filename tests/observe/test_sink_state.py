"""The state of sinks in the status, on the status page, and in metrics."""

from __future__ import annotations

import time
from typing import Any

import pytest
from support.client import Client
from support.server import serve

from smtpd_fork import Mail, Route, Sink
from smtpd_fork.cli.control.output import status_lines
from smtpd_fork.cli.control.replies import SinkState as SinkReply
from smtpd_fork.cli.control.replies import Status
from smtpd_fork.dialogue import Tally
from smtpd_fork.observe.sink_state import SinkState, sink_states
from smtpd_fork.observe.snapshot import snapshot_of
from smtpd_fork.observe.status_page import render
from smtpd_fork.sinks import Discard, PeerStatus


class Remote(Sink):
    @property
    def status(self) -> PeerStatus:
        return PeerStatus(3, 1, 2, time.time() - 60, "connection refused\x1b[31m<b>")

    async def deliver(self, mail: Mail) -> list[str]:
        return ["250 2.0.0 Ok", "451 4.3.0 Later"]


async def test_each_sink_has_its_replies_and_the_state_of_its_server() -> None:
    routes = [Route(Remote(), recipients=["a.example"], name="dovecot"), Discard()]
    async with serve(routes, tally=Tally(timing=True)) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            await client.say("MAIL FROM:<x@a.example>", "RCPT TO:<x@a.example>")
            await client.say("RCPT TO:<y@a.example>", "RCPT TO:<z@b.example>", "DATA")
            client.send("hello\r\n.\r\n")
            assert (await client.reply()).code == 451
        remote, discard = sink_states(server)
        assert (remote.name, remote.replies) == ("dovecot", {"2xx": 1, "4xx": 1})
        assert (remote.connections, remote.busy, remote.waiting) == (3, 1, 2)
        assert 59 < remote.down < 100
        assert (discard.name, discard.replies, discard.connections) == ("discard", {"2xx": 1}, None)
        page = render(snapshot_of(server), "mx").decode()
    assert "down for 1 min" in page
    assert "connection refused\\x1b[31m&lt;b&gt;" in page


async def test_a_single_sink_without_metrics_has_no_counts_of_its_own() -> None:
    async with serve(Discard()) as server:
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            await client.deliver()
        assert sink_states(server) == [SinkState(name="discard")]


def test_the_command_shows_the_state_that_the_daemon_sends() -> None:
    assert SinkReply.__struct_fields__ == SinkState.__struct_fields__


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({}, "sink       lmtp"),
        (
            {"replies": {"2xx": 5, "4xx": 7}, "average": 0.0021},
            "sink       lmtp: 4xx 7, 2xx 5; 2.1 ms on average",
        ),
        (
            {"connections": 2, "busy": 1, "down_since": 1.0, "down": 75.0, "reason": "refused"},
            "sink       lmtp: 2 connections, 1 busy, 0 waiting; down for 1m 15s: refused",
        ),
    ],
)
def test_status_has_a_line_for_each_sink_and_filter(facts: dict[str, Any], line: str) -> None:
    status = Status(
        *("1", 1, "mx", "serving", 1.0, 0, 1, {}, 0, [], 0, 0, {}, [], []),
        sinks=[SinkReply("lmtp", **facts)],
        filters=[SinkReply("scan", **facts)],
    )
    lines = list(status_lines(status))
    assert line in lines
    assert line.replace("sink       lmtp", "filter     scan") in lines
