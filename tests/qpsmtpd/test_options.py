"""qpsmtpd-forkserver and smtpd-fork: the help, and values and options that are refused."""

from __future__ import annotations

import pytest
from support.differences import Facts, both
from support.ports import free_port
from support.qpsmtpd import (
    LOOPBACK,
    Bench,
    Talk,
    as_user,
    at,
    is_free,
    kind,
    outcome,
    outcome_or_serving,
)

pytestmark = [pytest.mark.peers, pytest.mark.xdist_group("qpsmtpd")]


@both()
def test_help_goes_to_stdout_and_names_every_option(bench: Bench) -> Facts:
    facts: Facts = {}
    for flag in ("-h", "--help"):
        done = bench.run(flag)
        named = {
            option: option in done.stdout
            for option in (
                "-p, --port", "-u, --user", "-c, --limit-connections", "-m, --max-from-ip",
                "-l, --listen-address", "-d, --detach", "--pid-file",
            )
        }  # fmt: skip
        facts[flag] = done.returncode, done.stderr, named
    return facts


@both("bad-value")
def test_a_bad_value_does_not_start_it(bench: Bench) -> Facts:
    bad = [
        "-p smtp", "-p -1", "-c many", "-c -1", "-m few", f"-l {LOOPBACK}:smtp", "-l a@b",
        "--no-such-option", "-u",
    ]  # fmt: skip
    return {"bad-value": {outcome(bench, *options.split(" ")) for options in bad}}


@both("port-out-of-range", "limit-connections-0", "max-from-ip-negative")
def test_a_value_out_of_its_range_does_not_start_it(bench: Bench) -> Facts:
    def serves_another() -> str:
        return "nobody" if is_free(port) else "serves another port"

    def greets() -> str:
        with Talk(port) as talk:
            return "greets" if talk.hears() and kind(talk) == 2 else "greets nobody"

    port = free_port()
    facts: Facts = {}
    for key, options, look in (
        ("port-out-of-range", ["-l", LOOPBACK, "-p", str(port + 65536)], serves_another),
        ("limit-connections-0", [*at(port), "-c", "0"], greets),
        ("max-from-ip-negative", [*at(port), "-m", "-1"], greets),
    ):
        try:
            with bench.serve(*options):
                facts[key] = look()
        except AssertionError:
            facts[key] = outcome(bench, *options, *as_user())
    return facts


@both("ipv6-without-brackets", "relative-pid-file", ipv6=True)
def test_an_address_or_a_path_may_be_written_otherwise(bench: Bench) -> Facts:
    port = free_port()
    return {
        "ipv6-without-brackets": outcome_or_serving(bench, "-l", "::1", "-p", str(port)),
        "relative-pid-file": outcome_or_serving(bench, *at(port), "--pid-file", "pid"),
    }


@both("abbreviated-options", "extra-arguments", "no-rdns")
def test_what_is_no_option_of_the_man_page_is_refused(bench: Bench) -> Facts:
    port = at(free_port())
    return {
        "abbreviated-options": outcome_or_serving(bench, *port, "--limit-c", "5"),
        "extra-arguments": outcome_or_serving(bench, *port, "extra"),
        "no-rdns": outcome_or_serving(bench, *port, "--no-rdns"),
    }
