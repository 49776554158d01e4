"""The slots and times of one client, one /24 and one /48 by default, as in docs/security.md."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from itertools import cycle
from typing import TYPE_CHECKING, Any

import pytest
from support.auth import check
from support.client import MAIL, RCPT, Client
from support.gates import Clock, new_gate
from support.page import read
from support.server import running, serve, until

from smtpd_fork import Config, Gate, Ticket
from smtpd_fork.gate import limits_of
from smtpd_fork.listeners.pending_clients import PendingClient
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from collections.abc import Iterable

    from support.tls import Certificates

PAGE = read("docs/security.md")

HOSTS: dict[str, list[str]] = {
    "one client": ["198.51.100.1"],
    "one client of IPv6": [f"2001:db8::{n:x}" for n in range(1, 100)],
    "one /24": [f"198.51.100.{n}" for n in range(1, 255)],
    "one /48": [f"2001:db8:0:{n:x}::1" for n in range(100)],
}
"""For each kind of clients, their addresses."""


def table(mark: str) -> dict[str, list[str]]:
    """Return the rows of a table of the page, by their first cell."""
    lines = PAGE.split(f"<!-- {mark}:")[1].split("\n\n")[0].splitlines()[1:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in [cells[0], *cells[2:]]}


def share(row: str, kind: str) -> int:
    rows = table("shares")
    column = rows[""].index(kind.removesuffix(" of IPv6"))
    return int(rows[row][column])


@pytest.mark.parametrize("kind", HOSTS)
async def test_connection_slots(kind: str) -> None:
    most = share("connection slots", kind)
    listen = ["smtp+proxy:127.0.0.1:0"]
    async with (
        serve(Discard(), listen=listen, proxy_trust="127.0.0.1", limit_connections=1000) as server,
        AsyncExitStack() as stack,
    ):

        async def comes(host: str) -> int:
            client = await stack.enter_async_context(await Client.to(server.addresses[0]))
            family = "TCP6" if ":" in host else "TCP4"
            client.send(f"PROXY {family} {host} {host} 1000 25\r\n")
            return (await client.reply()).code

        hosts = cycle(HOSTS[kind])
        codes = [await comes(next(hosts)) for _ in range(most + 5)]
        assert codes == [220] * most + [421] * 5
        assert await comes("203.0.113.1") == 220


def handshakes(gate: Gate, hosts: Iterable[str]) -> int:
    count = 0
    for host in hosts:
        with gate.admit(host) as ticket:  # type: ignore[union-attr]
            assert isinstance(ticket, Ticket)
            if gate.begin_handshake(ticket) is not None:
                break
            count += 1
    return count


@pytest.mark.parametrize("kind", HOSTS)
def test_tls_handshakes(kind: str) -> None:
    clock = Clock()
    gate = new_gate(clock)
    at_once = share("failed and unfinished TLS handshakes at once", kind)
    later = share("the same, in each following minute", kind)
    hosts = cycle(HOSTS[kind])
    assert handshakes(gate, hosts) == at_once
    clock.now += 60.001
    assert handshakes(gate, hosts) == later


def test_four_networks_are_necessary_to_hold_every_slot() -> None:
    gate = Gate(limits=limits_of(Config.build({"limit_connections": 1000})))
    networks = clients = 0
    while not gate.full:
        networks += 1
        for client in range(1, 6):
            clients += 1
            for _ in range(50):
                gate.admit(f"198.51.{networks}.{client}")
    assert (networks, clients) == (4, 20)


# -- time ------------------------------------------------------------------------------------------

TRANSACTION = f"EHLO x\r\n{MAIL}\r\n{RCPT}\r\n"

WAYS: dict[str, tuple[dict[str, Any], str, str]] = {
    "idle before a command": ({}, "", "command"),
    "command begun": ({}, "NOOP\r\nNOO", "command"),
    "AUTH response awaited": ({}, "EHLO x\r\nAUTH LOGIN\r\n", "command"),
    "PROXY header awaited": ({"listen": ["smtp+proxy:127.0.0.1:0"]}, "", "proxy-header"),
    "silent during a message": ({}, f"{TRANSACTION}DATA\r\nhello", "data"),
    "commands without progress": ({}, "NOOP\r\n", "command"),
}


@pytest.mark.parametrize("way", WAYS)
async def test_time(way: str) -> None:
    """The deadline of a real session at the default settings, which bytes do not extend."""
    more, said, phase = WAYS[way]
    options: dict[str, Any] = {"authenticator": check, "auth_require_tls": False}
    async with (
        serve(Discard(), proxy_trust="127.0.0.1", session_options=options, **more) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        before = asyncio.get_running_loop().time()
        client.send(said)
        await until(lambda: phase in {entry.phase for entry in server.gate.ledger()})
        await client_has_said(client, said)
        (ticket,) = server.gate.tickets()
        holder: Any = ticket.holder
        if isinstance(holder, PendingClient):
            held: Any = holder.stage._clients
            deadline = held.deadline(holder)
        else:
            deadline = holder.ends_at if way.startswith("commands") else holder.deadline
        seconds = int(table("times")[way][0].removesuffix(" s"))
        now = asyncio.get_running_loop().time()
        assert before + seconds - 0.5 <= deadline <= now + seconds


async def client_has_said(client: Client, said: str) -> None:
    """Wait until the server has received everything: it answers each complete line."""
    for _ in range(1 + said.count("\r\n") if said else 0):
        await client.reply()


async def test_time_for_a_handshake(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds: list[float] = []
    loop = asyncio.get_running_loop()
    options: dict[str, Any] = {"tls_context": certificates.server, "listen": ["smtps:127.0.0.1:0"]}
    async with (
        serve(Discard(), limit_connections=4, **options) as server,
        AsyncExitStack() as stack,
    ):
        monkeypatch.setattr(running(server).sessions, "_loop", _Loop(loop, seconds))
        for number in range(4):
            await stack.enter_async_context(await Client.to(server.addresses[0]))
            await until(lambda n=number: len(seconds) > n)  # type: ignore[misc]
    usual, stressed = table("times")["TLS handshake, implicit TLS"]
    assert [f"{each:g} s" for each in seconds] == [usual, usual, stressed, stressed]


class _Loop:
    """A loop that records the timeouts of handshakes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: list[float]) -> None:
        self._loop = loop
        self._seconds = seconds

    def connect_accepted_socket(self, *args: Any, **options: Any) -> Any:
        self._seconds.append(options["ssl_handshake_timeout"])
        return self._loop.connect_accepted_socket(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


def test_time_under_stress_is_that_of_the_option() -> None:
    """tests/gate/test_stress.py checks that it is applied, with a shorter one."""
    stressed = {row: cells[1] for row, cells in table("times").items()}
    del stressed["state of a session"], stressed["PROXY header awaited"]
    seconds = f"{Config.build({}).stress_timeout:g} s"
    assert {re.match(r"\d+ s", cell)[0] for cell in stressed.values()} == {seconds}  # type: ignore[index]
