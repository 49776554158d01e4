"""qpsmtpd-forkserver and smtpd-fork: who waits and who is refused, with the same limits."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from support.daemon import COMMAND, until
from support.differences import Facts, both
from support.ports import free_port
from support.qpsmtpd import Bench, Talk, at, first_of, greeted, kind

pytestmark = [pytest.mark.peers, pytest.mark.xdist_group("qpsmtpd")]


LONG_SECONDS = 1.5
"""How long a client is listened to that hears something from one of the two."""


@both()
def test_beyond_limit_connections_a_client_waits_until_another_leaves(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve(*at(port), "-c", "1") as _, Talk(port) as first:
        facts: Facts = {"first": kind(first)}
        with Talk(port, source="127.0.0.2") as second:
            facts["is told something"] = second.hears()
            first.leave()
            facts["second"] = kind(second)
    return facts


@both()
def test_max_from_ip_does_not_override_limit_connections(bench: Bench) -> Facts:
    port = free_port()
    options = [*at(port), "--limit-connections", "1", "--max-from-ip", "2"]
    with bench.serve(*options) as _, Talk(port) as first:
        facts: Facts = {"first": kind(first)}
        with Talk(port) as second:
            facts["is told something"] = second.hears()
            first.leave()
            facts["second"] = kind(second)
    return facts


@both("limit-connections-over-several-sockets")
def test_limit_connections_counts_the_sessions_of_all_sockets(bench: Bench) -> Facts:
    ports = [free_port(), free_port()]
    with bench.serve(*at(ports[0]), *at(ports[1]), "-c", "1") as _, ExitStack() as talks:
        first = talks.enter_context(Talk(ports[0]))
        facts: Facts = {"first": kind(first)}
        waiting = [talks.enter_context(Talk(port)) for port in ports]
        facts["told something"] = any(talk.hears() for talk in waiting)
        first.leave()
        lucky = first_of(waiting)
        facts["lucky"] = kind(lucky)
        waiting.remove(lucky)
        facts["limit-connections-over-several-sockets"] = 1 + waiting[0].hears(LONG_SECONDS)
    return facts


@both("max-from-ip-reply")
def test_beyond_max_from_ip_a_client_is_refused_until_another_leaves(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve(*at(port), "-m", "1") as _, Talk(port) as first:
        facts: Facts = {"first": kind(first)}
        with Talk(port) as second:
            code = second.reply().code
            facts |= {"refused": code // 100, "closed": second.closed, "max-from-ip-reply": code}
        with Talk(port, source="127.0.0.2") as other:
            facts["other address"] = kind(other)
        first.leave()
        # qpsmtpd counts out who has left before it waits for the next, not after.
        until(lambda: greeted(port) == 2, "a place")
    return facts


@both("max-from-ip-takes-a-plugin", plugins=("no_dns", "rcpt_ok"))
def test_max_from_ip_takes_a_plugin(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve(*at(port), "-m", "1") as _, Talk(port) as first, Talk(port) as second:
        return {"first": kind(first), "max-from-ip-takes-a-plugin": kind(second)}


@both("default-max-from-ip")
def test_max_from_ip_has_a_default(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve(*at(port)) as _, ExitStack() as talks:
        kinds = [kind(talks.enter_context(Talk(port))) for _ in range(6)]
    return {"five": kinds[:5], "default-max-from-ip": kinds[5]}


@both("default-limit-connections")
def test_limit_connections_has_a_default_and_max_from_ip_0_is_no_limit(bench: Bench) -> Facts:
    port = free_port()
    with bench.serve(*at(port), "-m", "0") as _, ExitStack() as talks:
        kinds = [kind(talks.enter_context(Talk(port))) for _ in range(15)]
        last = talks.enter_context(Talk(port))
        return {
            "fifteen": kinds,
            "default-limit-connections": kind(last) if last.hears(LONG_SECONDS) else "waits",
        }


@both("early-talker-reply", plugins=("no_dns", "hosts_allow", "earlytalker wait 1", "rcpt_ok"))
def test_a_client_that_talks_before_the_greeting_is_refused(bench: Bench) -> Facts:
    port = free_port()
    pause = ["--greet-pause", "1s"] if bench.command == COMMAND else []
    with bench.serve(*at(port), *pause) as _, Talk(port) as patient, Talk(port) as early:
        code = early.say("EHLO client.example").code
        return {"patient": kind(patient), "early-talker-reply": code, "early ends": early.closed}
