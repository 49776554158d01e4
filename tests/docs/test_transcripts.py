"""The runner of the documentation's commands detects each difference from the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.machine import Machine, PageError
from support.transcript import Command, commands_of, is_as_shown, programs_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with Machine(tmp_path_factory.mktemp("machine")) as machine:
        yield machine


def command(text: str, shown: str = "") -> Command:
    return Command(1, text, shown)


@pytest.mark.parametrize(
    ("text", "programs"),
    [
        ("nc 127.0.0.1 2525 &", {"nc"}),
        ("swaks --server x \\\n  --to y", {"swaks"}),
        ("kill $(cat pid); wait %1", {"cat"}),
        ('kill "$(cat pid)"', {"cat"}),
        (
            "SMTPD_FORK_PORT=1 TZ=UTC smtpd-fork check | grep -c 'a|b; c' >log",
            {"smtpd-fork", "grep"},
        ),
        ("(printf 'DATA\\r\\n'\nsleep 60) | nc 127.0.0.1 2525 2>&1 &", {"sleep", "nc"}),
        ("cd /srv && make run ARGS='-d' || cat <file >other", {"make", "cat"}),
        ("while ! curl -s x; do sleep 1; done", {"curl", "sleep"}),
        ("PATH=$PWD/bin:$PATH", set()),
        ("./own.sh; /usr/bin/env", set()),
    ],
)
def test_the_programs_that_a_command_calls_are_known(text: str, programs: set[str]) -> None:
    assert programs_of(text) == programs


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("", "\n"),
        ("one\ntwo", "one\ntwo\n"),
        ("...\ntwo\n...", "one\ntwo\n"),
        ("...\ntwo\n...", "two\n"),
        ("a ... c", "a b c"),
        ("12 bytes in 0.25 s [6572-1]", "19 bytes in 3 s [57a8-19d]"),
        ("2026-11-22 17:08:40,631 serving, pid 26277", "2027-01-01 00:00:00,100 serving, pid 7"),
        ("Sun, 22 Nov 2026 17:08:41 +0000", "Mon,  4 Jan 2027 00:00:00 +0100"),
        ("220 mx\r\n", "220 mx\n"),
    ],
)  # fmt: skip
def test_texts_that_change_in_each_run_may_differ(shown: str, printed: str) -> None:
    assert is_as_shown(printed, shown)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("", "a word"),
        ("one", "one\ntwo"),
        ("one\ntwo", "one"),
        ("...\ntwo", "one\nthree"),
        ("250 2.0.0 Ok", "250 2.1.0 Ok"),
        ("250 2.0.0 Ok", "451 2.0.0 Ok"),
        ("max_from_ip (2 > 1)", "max_from_ip (3 > 1)"),
        ("listening on 127.0.0.1:2525", "listening on 127.0.0.1:2526"),
        ("from 127.0.0.1", "from 127.0.0.7"),
        ("a.c", "abc"),
    ],
)
def test_any_other_difference_is_found(shown: str, printed: str) -> None:
    assert not is_as_shown(printed, shown)


def test_a_block_is_parsed_into_commands_and_outputs() -> None:
    one, two = "$ one \\\n    more\n# output\n", "$ two <<END\n> text\n> END\n"
    block = f"{one}{two}$ three &\noutput\n> \nof three"
    assert commands_of(block, 7) == [
        Command(7, "one \\\n    more", "# output"),
        Command(10, "two <<END\ntext\nEND", ""),
        Command(13, "three &", "output\n> \nof three"),
    ]


def test_a_block_begins_with_a_prompt() -> None:
    with pytest.raises(ValueError, match="begins with"):
        commands_of("smtpd-fork\n", 1)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (command("echo a", "b"), "not as the page shows"),
        (command("echo a"), "not as the page shows"),
        (command("true", "a"), "not as the page shows"),
        (command("false"), "status 1"),
        (command("echo a; exit_with() { return 7; }; exit_with", "..."), "status 7"),
    ],
)
def test_a_command_that_does_something_else_fails(
    machine: Machine, wrong: Command, why: str
) -> None:
    with pytest.raises(PageError, match=why):
        machine.run(wrong)


def test_a_failure_that_the_page_shows_is_expected(machine: Machine) -> None:
    machine.run(command("cat nothing", "cat: nothing: No such file or directory"))
    machine.run(command("false; echo $?", "1"))


def test_the_commands_of_a_page_run_in_one_shell(machine: Machine) -> None:
    machine.run(command("moon=late"))
    machine.run(command("echo $moon; (exit 3)", "late"))
    machine.run(command("echo $?", "3"))


def test_the_output_of_background_processes_is_awaited(machine: Machine) -> None:
    machine.run(command("(sleep 0.1; echo now) &", "now"))


def test_a_command_that_only_reads_is_repeated(machine: Machine) -> None:
    machine.run(command("(sleep 0.1; echo now > later) &"))
    machine.run(command("cat later", "now"))


def test_a_page_does_not_see_the_environment_of_the_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAKELEVEL", "1")
    monkeypatch.setenv("SMTPD_FORK_PORT", "25")
    with Machine(tmp_path) as machine:
        machine.run(command("echo ${MAKELEVEL-none} ${SMTPD_FORK_PORT-none}", "none none"))


def test_pages_do_not_share_a_machine(machine: Machine, tmp_path: Path) -> None:
    machine.run(command("hostname; pwd; ls", "mx.example.com\n/srv\n...\nMakefile\n..."))
    machine.run(command("ip -o link | wc -l", "1"))
    machine.run(command("touch /etc/of-a-test /run/of-a-test"))
    with Machine(tmp_path) as other:
        other.run(command("ls /etc/of-a-test", "ls: cannot access '/etc/of-a-test': ..."))
        other.run(command("ls /run/of-a-test", "ls: cannot access '/run/of-a-test': ..."))
