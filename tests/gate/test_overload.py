"""Overload: refusals while the loop lags; and an address that hides those of all clients."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.server import serve, until

from smtpd_fork import Gate, Limits, Refusal, Ticket
from smtpd_fork.listeners.common_address_warning import CommonAddressWarning, default_gateways
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from pathlib import Path

RELAY = "127.0.0.9"


class Blocks(Discard):
    """Blocks the loop for a given time."""

    async def handle_HELO(self, server: Any, session: Any, envelope: Any, name: str) -> str:
        time.sleep(float(name))
        session.host_name = name
        return "250 mx"


async def test_only_exempt_clients_are_admitted_while_the_loop_lags(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options: dict[str, Any] = {"max_loop_lag": 0.2, "exempt": RELAY}
    async with serve(Blocks(), **options) as server:
        first = await Client.to(server.addresses[0])
        await first.reply()
        blocking = asyncio.create_task(first.say("HELO 0.7"))
        await until(lambda: server.gate.load.lag >= 0.2)
        async with await Client.to(server.addresses[0]) as second:
            code, (text,) = await second.reply()
            assert (code, text[:5]) == (421, "4.3.2")
            assert "Overloaded, try again later [" in text
        async with await Client.to(server.addresses[0], source=RELAY) as relay:
            assert (await relay.greet()).code == 250
        await blocking
        await until(lambda: server.gate.load.lag <= 0.2)
        async with await Client.to(server.addresses[0]) as third:
            assert (await third.reply()).code == 220
        await first.close()
        await until(lambda: "event-loop lag is over" in caplog.text)
    assert caplog.text.count(" ms: new clients are refused") == 1


async def test_ordinary_mail_is_accepted_while_large_messages_use_all_memory() -> None:
    leave = asyncio.Event()

    class Slow(Discard):
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            if len(envelope.content) > 100_000:
                await leave.wait()
            return "250 2.0.0 Ok"

    large = ("x" * 78 + "\r\n") * 7500
    async with serve(Slow(), max_buffered=1_180_000) as server:
        clients = [await Client.to(server.addresses[0]) for _ in range(2)]
        for client in clients:
            await client.greet()
            await client.say("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "DATA")
            client.send(large + ".\r\n")
        # 64 KiB of each session are not counted.
        await until(lambda: server._budget.used >= 2 * (600_000 - 65_536))
        async with await Client.to(server.addresses[0]) as other:
            await other.greet()
            assert (await other.deliver()).code == 250
            assert (await other.deliver(large)).code == 452
        leave.set()
        for client in clients:
            assert (await client.reply()).code == 250
            await client.close()


# -- one address for all -------------------------------------------------------------------------


def watched(hosts: list[str], by: str) -> CommonAddressWarning:
    gate = Gate(limits=Limits(max_from_ip=0))
    tickets = [gate.admit(host) for host in hosts]
    assert isinstance(tickets[0], Ticket)
    assert tickets[0].key is not None
    watch = CommonAddressWarning(gate)
    for _ in range(3):
        watch.note(Refusal(by, tickets[0].key, 1, 1))
    return watch


@pytest.mark.parametrize(
    ("hosts", "by", "logged"),
    [
        (["10.0.0.5"] * 8 + ["192.0.2.1"] * 4, "max_from_ip", 1),
        (["172.17.0.1"] * 12, "rate", 1),
        (["fd00::5"] * 12, "max_from_ip", 1),
        (["10.0.0.5"] * 8 + ["192.0.2.1"] * 8, "max_from_ip", 0),  # not most of them
        (["10.0.0.5"] * 5, "max_from_ip", 0),  # too few sessions to decide
        (["1.2.3.4"] * 12, "max_from_ip", 0),  # a public address: an attack
        (["127.0.0.1"] * 12, "max_from_ip", 0),  # this host
        (["10.0.0.5"] * 12, "deny", 0),
    ],
)
def test_an_address_that_hides_all_others_is_logged_once(
    hosts: list[str], by: str, logged: int, caplog: pytest.LogCaptureFixture
) -> None:
    watched(hosts, by)
    assert caplog.text.count("has most of the sessions") == logged
    assert caplog.text.count("PROXY") == logged


def test_an_attack_from_one_address_is_examined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at each of its refusals, of which there may be thousands."""
    reads: list[None] = []

    def gateways() -> set[str]:
        reads.append(None)
        return set()

    monkeypatch.setattr("smtpd_fork.listeners.common_address_warning.default_gateways", gateways)
    watched(["1.2.3.4"] * 12, "max_from_ip")
    assert len(reads) == 1


def test_default_gateways_are_read_from_the_systems_routes(tmp_path: Path) -> None:
    routes = tmp_path / "route"
    routes.write_text(
        "Iface\tDestination\tGateway\tFlags\n"
        "eth0\t00000000\t0102A8C0\t0003\n"
        "eth0\t0002A8C0\t00000000\t0001\n"
    )
    assert default_gateways(routes) == {"192.168.2.1"}
    assert default_gateways(tmp_path / "none") == set()
    routes.write_text("nonsense\nmore nonsense\n")
    assert default_gateways(routes) == set()
