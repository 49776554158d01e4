"""Metrics: their documented names, their values, and the checks of Prometheus' promtool."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import subprocess
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.smtp import MISSING
from prometheus_client import ProcessCollector
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as text_format
from support.client import MAIL, RCPT, Client
from support.nameserver import name_server
from support.page import read
from support.peers import peer, proc
from support.server import until
from support.status import Page, watched

from smtpd_fork import Gate, Refusal, __version__
from smtpd_fork.dialogue.rejections import BY_HANDLER, MEANINGS, REASONS, UNKNOWN
from smtpd_fork.dialogue.tally import BOUNDS, OUTCOMES
from smtpd_fork.filters import Filter
from smtpd_fork.gate.statistics import CURES
from smtpd_fork.handlers import Route
from smtpd_fork.observe import process
from smtpd_fork.observe.metrics import FLEET_METRICS, METRICS, SUPERVISOR_METRICS
from smtpd_fork.observe.snapshot import MAX_LISTED, PHASES, SLICE
from smtpd_fork.sinks import Maildir, PeerStatus

if TYPE_CHECKING:
    from pathlib import Path

    from support.status import Page, Watched
    from support.tls import Certificates

PAGE = "docs/monitoring.md"
OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"


class Judge(Filter):
    """A handler that rejects and defers messages according to the address."""

    status = PeerStatus(2, 1, 0, 1_700_000_000.0, "refused")

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
    ) -> str:
        with self.request() as request:
            await asyncio.sleep(0)
            request.answer = MISSING
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Any:
        answers = {"bad@example.com": "550 5.7.1 No", "early@example.com": "451 4.7.1 Later"}
        with self.request() as request:
            request.answer = answers.get(envelope.rcpt_tos[0], MISSING)
        return request.answer


class Remote(Maildir):
    """A sink that has a server."""

    status = PeerStatus(3, 1, 2, 1_700_000_000.0, "refused")


async def samples(watched: Watched) -> dict[tuple[str, str], float]:
    """Return all samples by name and value of the label."""
    watched.status._snapshots._valid_until = 0
    page = await watched.get("/metrics")
    assert (page.status, page.headers["content-type"]) == (
        200,
        "text/plain; version=0.0.4; charset=utf-8",
    )
    samples = [sample for family in text_format(page.body) for sample in family.samples]
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for sample in samples
        if "le" not in sample.labels
    }


async def traffic(server: Any, certificates: Certificates) -> None:
    """Cause events of all kinds."""
    for to in ("b@example.com", "bad@example.com", "early@example.com", "b@example.com"):
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            await client.deliver(to=to)
            await client.say("QUIT")
    async with await Client.to(server.addresses[0]) as client:
        await client.greet()
        assert (await client.say("STARTTLS")).code == 220
        await client.writer.start_tls(certificates.client, server_hostname="localhost")
        await client.say("EHLO c", MAIL, RCPT, "DATA")
    async with await Client.to(server.addresses[0]) as client:
        await client.greet()
        await client.say("STARTTLS")
        client.send("no TLS\r\n" * 100)
        await until(lambda: server.tally.tls_failed)
    await until(lambda: not server.sessions)
    for _ in range(3):
        async with await Client.to(server.addresses[0], source="127.0.0.66") as client:
            assert (await client.reply()).code == 554


def watched_with_all_features(tmp_path: Path, certificates: Certificates, **more: Any) -> Any:
    return watched(
        [Judge(), Route(Remote(tmp_path / "mail"), name="maildir")],
        tls_context=certificates.server,
        deny="127.0.0.66",
        backlog=33,
        **more,
    )


async def test_events_are_counted(tmp_path: Path, certificates: Certificates) -> None:
    proc()
    async with watched_with_all_features(tmp_path, certificates) as seen:
        await traffic(seen.server, certificates)
        async with await Client.to(seen.server.addresses[0]) as client:
            await client.greet()
            found = await samples(seen)
            place = str(seen.server.listeners[0])
            wanted = {
                ("smtpd_fork_sessions", "command"): 1,
                ("smtpd_fork_sessions", "data"): 0,
                ("smtpd_fork_sessions_limit", ""): seen.server.config.limit_connections,
                ("smtpd_fork_clients", ""): 1,
                ("smtpd_fork_admissions_total", ""): 7,
                ("smtpd_fork_refusals_total", "deny"): 3,
                ("smtpd_fork_refusals_total", "rate"): 0,
                ("smtpd_fork_ready", ""): 1,
                ("smtpd_fork_sink_connections", "maildir"): 3,
                ("smtpd_fork_sink_waiting", "maildir"): 2,
                ("smtpd_fork_sink_down_since_timestamp_seconds", "maildir"): 1_700_000_000.0,
                ("smtpd_fork_filter_connections", "judge"): 2,
                ("smtpd_fork_filter_replies_total", "2xx,judge"): 7,
                ("smtpd_fork_filter_replies_total", "4xx,judge"): 1,
                ("smtpd_fork_filter_replies_total", "5xx,judge"): 1,
                ("smtpd_fork_filter_seconds_count", "judge"): 9,
                ("smtpd_fork_filter_down_since_timestamp_seconds", "judge"): 1_700_000_000.0,
                ("smtpd_fork_messages_total", "accepted"): 2,
                ("smtpd_fork_messages_total", "rejected"): 1,
                ("smtpd_fork_messages_total", "deferred"): 1,
                ("smtpd_fork_messages_total", "aborted"): 1,
                ("smtpd_fork_message_bytes_total", ""): 2 * len("Subject: hello\r\n\r\nhello\r\n"),
                ("smtpd_fork_handler_seconds_count", "RCPT"): 5,
                ("smtpd_fork_handler_seconds_count", "DATA"): 4,
                ("smtpd_fork_sink_seconds_count", "maildir"): 2,
                ("smtpd_fork_tls_handshakes_total", "done"): 1,
                ("smtpd_fork_tls_handshakes_total", "failed"): 1,
                ("smtpd_fork_tls_handshakes_total", "refused"): 0,
                ("smtpd_fork_accept_queue", place): 0,
                ("smtpd_fork_accept_queue_limit", place): 33,
            }
            assert {key: found[key] for key in wanted} == wanted
            assert found["smtpd_fork_received_bytes_total", ""] > 500
            assert found["smtpd_fork_handler_seconds_sum", "DATA"] > 0
            assert found["process_open_fds", ""] > 0
            await until(lambda: sum(seen.server.tally.lag.counts))
            assert (await samples(seen))["smtpd_fork_loop_lag_seconds_count", ""] > 0


async def scraped_after_traffic(folder: Path, certificates: Certificates) -> str:
    """Return the answer to a scrape after traffic of all kinds."""
    async with (
        name_server() as names,
        watched_with_all_features(
            folder, certificates, dnsbl="bl.example", dns_server=names.address
        ) as seen,
    ):
        await traffic(seen.server, certificates)
        assert (await samples(seen))["smtpd_fork_dnsbl_zone_enabled", "bl.example"] == 1
        page: Page = await seen.get("/metrics")
        return page.body


async def test_the_collected_metrics_are_those_in_the_table(
    tmp_path: Path, certificates: Certificates
) -> None:
    proc()
    body = await scraped_after_traffic(tmp_path, certificates)
    collected = {}
    for family in text_format(body):
        keys = {key for sample in family.samples for key in sample.labels} - {"le"}
        labels = ",".join(sorted(keys, reverse=True))
        info = family.name.endswith("_info")
        name = family.name + ("_total" if family.type == "counter" else "")
        kind = "info" if info else family.type
        collected[name] = (kind, "" if info else labels, family.documentation)
    assert collected == {row.name: (row.kind, row.label, row.text) for row in METRICS}


def test_the_table_of_the_docs_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| `?([\w,]*)`? \| (.+) \|$", read(PAGE), re.MULTILINE)
    assert rows == [
        (row.name, row.kind, row.label, row.text.rstrip("."))
        for row in (*METRICS, *FLEET_METRICS, *SUPERVISOR_METRICS)
    ]


def test_every_outcome_is_in_the_docs() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|$", read(PAGE), re.MULTILINE))
    assert {name: rows.get(name) for name in OUTCOMES} == OUTCOMES


def test_every_reason_of_a_rejection_is_in_the_docs() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|$", read(PAGE), re.MULTILINE))
    assert {name: rows.get(name) for name in MEANINGS} == MEANINGS
    assert set(REASONS.values()) | {BY_HANDLER, UNKNOWN} == set(MEANINGS)


async def test_promtool_accepts_it_after_real_traffic(
    tmp_path: Path, certificates: Certificates
) -> None:
    promtool = peer("promtool")
    body = await scraped_after_traffic(tmp_path, certificates)
    ended = await asyncio.to_thread(
        subprocess.run,
        [promtool, "check", "metrics"],
        input=body,
        text=True,
        capture_output=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


async def test_openmetrics_is_sent_if_it_is_requested(
    tmp_path: Path, certificates: Certificates
) -> None:
    async with watched_with_all_features(tmp_path, certificates) as seen:
        await traffic(seen.server, certificates)
        page = await seen.get("/metrics", accept=OPENMETRICS)
        assert page.headers["content-type"].startswith("application/openmetrics-text")
        assert page.body.endswith("# EOF\n")
        families = {family.name: family for family in openmetrics(page.body)}  # type: ignore[no-untyped-call]
        (build,) = families["smtpd_fork_build"].samples
        assert build.labels["version"] == __version__
        assert families["smtpd_fork_messages"].samples[0].value == 2
        for accept in (
            "text/plain",
            "nonsense/,;;q=;version=x",
            "application/openmetrics-text;x=é",
        ):
            assert (await seen.get("/metrics", accept=accept)).status == 200


async def test_the_number_of_labels_is_limited(tmp_path: Path, certificates: Certificates) -> None:
    async with watched_with_all_features(tmp_path, certificates) as seen:
        seen.server.gate.refuse(Refusal("an embedder's own", "192.0.2.7", 1, 0))
        found = await samples(seen)
        assert found["smtpd_fork_refusals_total", "other"] == 1
        rules = {label for name, label in found if name == "smtpd_fork_refusals_total"}
        assert rules == {*CURES, "other"}
        assert {label for name, label in found if name == "smtpd_fork_sessions"} == set(PHASES)


async def test_every_bucket_includes_the_smaller_ones(
    tmp_path: Path, certificates: Certificates
) -> None:
    async with watched_with_all_features(tmp_path, certificates) as seen:
        for seconds in (0.0001, 0.3, 1000.0):
            seen.server.tally.sinks["maildir"].latency.observe(seconds)
        body = (await seen.get("/metrics")).body
    buckets = re.findall(r'sink_seconds_bucket\{le="(\S+)",sink="maildir"\} (\S+)', body)
    assert [bound for bound, _ in buckets] == [*map(str, BOUNDS), "+Inf"]
    counts = [float(count) for _, count in buckets]
    assert counts == sorted(counts)
    assert (counts[0], counts[BOUNDS.index(0.5)], counts[-2], counts[-1]) == (1, 2, 2, 3)


async def test_metrics_of_the_process_are_those_of_prometheus_client() -> None:
    proc()
    samples = [metric.samples[0] for metric in ProcessCollector(registry=None).collect()]
    theirs = {sample.name: sample.value for sample in samples}
    ours = process.Process().values()
    assert ours.keys() == theirs.keys()
    for name in ("process_max_fds", "process_start_time_seconds"):
        assert ours[name] == theirs[name]
    assert ours["process_max_fds"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    for name in ("process_resident_memory_bytes", "process_virtual_memory_bytes"):
        assert ours[name] == pytest.approx(theirs[name], rel=0.1)


def test_open_descriptors_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    proc()
    before = process.open_descriptors()
    descriptor = os.open(os.devnull, os.O_RDONLY)
    assert process.open_descriptors() == before + 1
    os.close(descriptor)
    assert process.open_descriptors() == before


async def test_many_sessions_are_counted_in_slices() -> None:
    """Other tasks run between two slices; the oldest sessions are listed in each case."""
    gate = Gate(limit_connections=10_000, max_from_ip=0)
    tickets = [gate.admit((f"10.0.{n >> 8}.{n & 255}", 25)) for n in range(3 * SLICE)]
    tickets += [gate.admit(("10.9.9.9", 25)) for _ in range(5)]
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with watched(Judge(), gate=gate) as seen:
        counting = asyncio.create_task(count())
        snapshot = await seen.status._snapshots.latest()
        counting.cancel()
        assert turns >= 3
        assert snapshot.sessions == len(tickets)
        assert snapshot.phases["arriving"] == len(tickets)
        assert (snapshot.clients, snapshot.top[0]) == (3 * SLICE + 1, ("10.9.9.9", 5))
        assert [e.since for e in snapshot.oldest] == sorted(t.since for t in tickets)[:MAX_LISTED]  # type: ignore[union-attr]
        for ticket in tickets:
            ticket.release()  # type: ignore[union-attr]


async def test_requests_within_a_second_share_a_snapshot() -> None:
    looked = 0
    async with watched(Judge()) as seen, AsyncExitStack() as stack:
        gate = seen.server.gate
        tickets = gate.tickets

        def counted() -> Any:
            nonlocal looked
            looked += 1
            return tickets()

        gate.tickets = counted  # type: ignore[method-assign]
        stack.callback(delattr, gate, "tickets")
        begun = time.monotonic()
        pages = await asyncio.gather(*(seen.get("/metrics") for _ in range(30)))
        assert [page.status for page in pages] == [200] * 30
        assert looked <= 1 + (time.monotonic() - begun)
