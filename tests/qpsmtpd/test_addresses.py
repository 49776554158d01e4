"""qpsmtpd-forkserver and smtpd-fork: what is bound for the same options."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest
from support.differences import Facts, both
from support.ports import free_port
from support.processes import listening
from support.qpsmtpd import LOOPBACK, Bench, Talk, as_user, at, greeted, is_free, kind

pytestmark = [pytest.mark.peers, pytest.mark.xdist_group("qpsmtpd")]


@both()
def test_an_address_without_a_port_is_bound_on_every_port(bench: Bench) -> Facts:
    first, second, own = ports = [free_port() for _ in range(3)]
    options = ["-l", LOOPBACK, "-l", f"127.0.0.2:{own}", "-l", "127.0.0.3"]
    with bench.serve(*options, "-p", str(first), "-p", str(second)) as running:
        return {"bound": {(host, ports.index(port)) for host, port in listening(running.pid)}}


@both()
def test_ports_are_not_bound_where_every_address_names_one(bench: Bench) -> Facts:
    own, unused = ports = [free_port() for _ in range(2)]
    options = [f"--listen-address={LOOPBACK}:{own}", "--port", str(unused)]
    with bench.serve(*options) as running:
        bound = {(host, ports.index(port)) for host, port in listening(running.pid)}
        return {"bound": bound, "greeted": greeted(own), "free": is_free(unused)}


@both(ipv6=True)
def test_an_ipv6_address_is_written_in_brackets(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve("-l", f"[::1]:{port}") as running:
        bound = {host for host, _ in listening(running.pid)}
        return {"bound": bound, "greeted": greeted(port, "::1")}


@both("max-from-ip-on-the-default-address", ipv6=True)
def test_without_an_address_both_families_are_served_on_all_interfaces(bench: Bench) -> Facts:
    port = free_port()
    facts: Facts = {"first": [], "max-from-ip-on-the-default-address": []}
    with bench.serve("-p", str(port), "-m", "1") as running, ExitStack() as talks:
        facts["bound"] = {host for host, _ in listening(running.pid)}
        for host in (LOOPBACK, "::1"):
            for fact in ("first", "max-from-ip-on-the-default-address"):
                facts[fact].append(kind(talks.enter_context(Talk(port, host))))
    return facts


@both("same-address-twice")
def test_the_same_address_twice_is_bound_once_or_not_at_all(bench: Bench) -> Facts:
    port = free_port()
    return {"same-address-twice": bench.starts(*at(port), *at(port))}


@both("exit-status-of-a-failed-start")
def test_an_address_that_cannot_be_bound_fails_the_start(bench: Bench) -> Facts:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        runs = [bench.run(*at(port), *as_user()), bench.run(*at(port, "192.0.2.1"), *as_user())]
    return {
        "failed": [run.returncode != 0 for run in runs],
        "lines on stderr": [len(run.stderr.splitlines()) for run in runs],
        "names the address": [f":{port}" in run.stderr for run in runs],
        "exit-status-of-a-failed-start": [run.returncode for run in runs],
    }
