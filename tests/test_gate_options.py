"""The gate's rules, as a process and a server on real sockets have them."""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from support.client import Client
from support.daemon import LOCAL, Daemon
from support.dialogue import first_line
from support.server import serve

from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from pathlib import Path

RELAY, OTHER = "127.0.0.9", "127.0.0.1"


def test_deny_tells_554_with_the_lists_own_text(tmp_path: Path) -> None:
    listed = tmp_path / "bad.list"
    listed.write_text("127.0.0.0/30 No mail from here\n")
    options = ("--deny", str(listed), "--allow", "127.0.0.2", "--hostname", "mx.example.com")
    with Daemon(*LOCAL, *options, cwd=tmp_path) as daemon:
        refused = first_line(("127.0.0.1", daemon.port))
        told = r"554 5\.7\.1 mx\.example\.com No mail from here \[\w+-\w+\]\r\n"
        assert re.fullmatch(told, refused), refused
        daemon.wait_for(r"refused 127\.0\.0\.0/30: deny \[\w+-\w+\]")
        with daemon.smtp(source="127.0.0.2") as allowed, daemon.smtp(source="127.0.0.4") as other:
            assert allowed.noop()[0] == other.noop()[0] == 250


def test_max_from_net_counts_a_network_as_one(tmp_path: Path) -> None:
    options = ("--max-from-net", "2/29", "--max-from-net", "4/24")
    with Daemon(*LOCAL, *options, cwd=tmp_path) as daemon, ExitStack() as stack:
        for host in ("127.0.0.1", "127.0.0.2", "127.0.0.9", "127.0.0.10"):
            stack.enter_context(daemon.smtp(source=host))
        refused = first_line(("127.0.0.1", daemon.port))
        assert "421 4.7.0 " in refused
        assert "from 127.0.0.0/29," in refused


def test_rate_counts_new_sessions_also_when_the_old_ones_have_ended(tmp_path: Path) -> None:
    with Daemon(*LOCAL, "--rate", "3/h", cwd=tmp_path) as daemon:
        for _ in range(3):
            daemon.smtp().quit()
        refused = first_line(("127.0.0.1", daemon.port))
        assert "Too many new connections from 127.0.0.1," in refused
        daemon.smtp(source="127.0.0.2").quit()


def test_refuse_every_is_repeatable(tmp_path: Path) -> None:
    options = ("--refuse-first", "1", "--refuse-every", "2")
    with Daemon(*LOCAL, *options, cwd=tmp_path) as daemon:
        # The test's own wait for the port may have been the first of all.
        codes = [first_line(("127.0.0.1", daemon.port))[:3] for _ in range(6)]
        assert codes[1:] in (["220", "421", "220", "421", "220"], ["421", "220"] * 2 + ["421"])


async def test_sources_of_ipv6_are_one_by_their_64() -> None:
    async with serve(Discard(), listen=["[::1]:0"], max_from_ip=1) as server:
        async with await Client.to(server.addresses[0]) as first:
            await first.greet()
            async with await Client.to(server.addresses[0]) as second:
                assert "from ::/64, try" in (await second.reply()).text


@pytest.mark.parametrize("when_full", ["defer", "defer:60", "refuse"])
async def test_a_flood_cannot_lock_exempt_clients_out(when_full: str) -> None:
    """Also where clients are deferred, and more of them wait than may."""
    options = {"limit_connections": 4, "reserve": 2, "exempt": RELAY, "backlog": 3}
    async with serve(Discard(), when_full=when_full, max_from_ip=0, **options) as server:
        address = server.addresses[0]
        inside = [await Client.to(address, source=OTHER) for _ in range(2)]
        for client in inside:
            await client.greet()
        flood = [await Client.to(address, source=OTHER) for _ in range(10)]
        refused = flood[3:] if when_full.startswith("defer") else flood
        for client in refused:
            assert (await client.reply()).code == 421
        relays = [await Client.to(address, source=RELAY) for _ in range(2)]
        for relay in relays:
            assert (await relay.greet()).code == 250
        assert server.gate.full
        for client in (*inside, relays[0]):
            await client.close()
        if when_full != "refuse":
            assert (await flood[0].greet()).code == 250  # who waited longest comes in
        async with await Client.to(address, source=RELAY) as third:
            assert (await third.greet()).code == 250
        for client in (*flood, relays[1]):
            await client.close()


async def test_who_waits_for_a_place_that_is_reserved_costs_no_turns_of_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"limit_connections": 2, "reserve": 1, "exempt": RELAY}
    async with serve(Discard(), max_from_ip=0, **options) as server:
        async with await Client.to(server.addresses[0], source=OTHER) as first:
            await first.greet()
            waiting = await Client.to(server.addresses[0], source=OTHER)
            async with await Client.to(server.addresses[0], source=RELAY) as relay:
                await relay.greet()
            acceptor = server._acceptor
            assert acceptor is not None
            turns: list[None] = []
            reopen = acceptor._reopen

            def counted() -> None:
                turns.append(None)
                reopen()

            monkeypatch.setattr(acceptor, "_reopen", counted)
            for _ in range(3):
                assert (await first.say("NOOP")).code == 250
            assert len(turns) <= 2
        assert (await waiting.greet()).code == 250
        await waiting.close()
