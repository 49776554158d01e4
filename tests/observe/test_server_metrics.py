"""ServerMetrics: the metrics of a server in a program that has its own registry."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from support.client import Client
from support.gates import Clock
from support.server import serve

from smtpd_fork import Gate, Server, ServerMetrics
from smtpd_fork.observe.metrics import METRICS
from smtpd_fork.sinks import Discard


def samples(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    """Return all samples by name and values of the labels."""
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


async def test_a_registry_of_the_program_has_the_metrics_of_the_server() -> None:
    registry = CollectorRegistry()
    async with serve(Discard()) as server:
        registry.register(ServerMetrics(server))
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            await client.deliver()
            during = samples(registry)
            await client.say("DATA")
        assert during["smtpd_fork_sessions", "command"] == 1
        after = await asyncio.to_thread(samples, registry)  # like the server of prometheus_client
    assert after["smtpd_fork_messages_total", "accepted"] == 1
    assert after["smtpd_fork_rejections_total", "sequence"] == 1
    assert after["smtpd_fork_ready", ""] == 1
    names = {row.name for row in METRICS if row.name.startswith("smtpd_fork_")}
    documented = {name.removesuffix("_bucket").removesuffix("_count") for name, _ in after}
    wanted = {"smtpd_fork_dnsbl_zone_enabled", "smtpd_fork_handler_seconds"}
    of_handlers = ("smtpd_fork_sink_", "smtpd_fork_filter_")
    assert {each for each in names - documented if not each.startswith(of_handlers)} <= wanted


async def test_networks_denied_at_run_time_are_counted_until_they_expire() -> None:
    clock = Clock()
    registry = CollectorRegistry()
    async with serve(Discard(), gate=Gate(clock=clock)) as server:
        registry.register(ServerMetrics(server))
        assert samples(registry)["smtpd_fork_denied_networks", ""] == 0
        server.deny("192.0.2.0/24")
        server.deny("198.51.100.7", seconds=60)
        server.deny("2001:db8::/32")
        server.undeny("2001:db8::/32")
        assert samples(registry)["smtpd_fork_denied_networks", ""] == 2
        clock.now += 61
        assert samples(registry)["smtpd_fork_denied_networks", ""] == 1


async def test_created_before_the_start_it_measures_hooks_and_bytes_as_well() -> None:
    registry = CollectorRegistry()
    server = Server(Discard(), listen=["127.0.0.1:0"])
    registry.register(ServerMetrics(server))
    async with server:
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            await client.deliver()
        after = samples(registry)
    assert after["smtpd_fork_handler_seconds_count", "DATA"] == 1
    assert after["smtpd_fork_received_bytes_total", ""] > 100


def test_a_second_server_needs_a_registry_of_its_own() -> None:
    registry = CollectorRegistry()
    registry.register(ServerMetrics(Server(Discard())))
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(ServerMetrics(Server(Discard())))
