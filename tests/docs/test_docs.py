"""Every command and every snippet of README.md and docs/*.md is run.

How to write a block. Each one is fenced and names its language; what is indented only is no block.

``console``
    A session in a shell. Lines that begin with ``$ `` (or with ``# ``, as root; the first line says
    which it is) are commands; they go on behind a backslash, and on lines that begin with ``> ``.
    What follows is the output, standard error included, and is compared line by line. A line
    ``...`` is any number of lines, ``...`` in a line is anything; times, ids, pids, figures with
    a unit or a decimal point and those of five digits and more may be others (the list is
    ``_LOOSE`` in support/transcript.py). A command that shows no output has to print none, and
    succeeds. All of a page's console blocks are run in one shell, in their order, as root, in
    namespaces of their own (support/machine.py): the machine is called mx.example.com, it has
    a loopback and nothing else, all ports are free, and nothing that is running there, or written
    to /srv (where the page begins, with Makefile and examples/ as in a clone), /etc, /run, /var/log
    or /var/mail, is there for the next page. So a daemon is started with ``-d``, anything else that
    goes on with ``&``; what they print later is waited for. What
    only looks (cat, grep, curl and so on, ``_LOOKS`` there) is repeated until it shows that.
    Standard input is /dev/null. ``smtpd-fork`` is this project's.
``python``
    A program that stands alone, and ends; ``await`` is allowed anywhere. Warnings are errors.
``text`` after ``<!-- output -->``
    What the ``python`` block before it prints, compared in the same way.
``toml``
    A file that ``--config`` takes.
``json``
    Is read.
``{toctree}`` and other words in braces
    A directive of Sphinx: test_site.py builds the site.
``mermaid``
    A diagram, made by ``make papers``: test_papers.py sees that it is up to date.

``<!-- file: NAME -->`` before a block has it written to NAME (relative to /srv, or below /etc)
before the next console block is run; a command behind it has to name the file. In any other
language a block takes that, as nobody but the program that it is for can say whether it is right.

``<!-- not run: REASON -->`` before a block is for what cannot be run by a test, and for nothing
else.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.machine import Machine, run_alone
from support.page import PAGES, Block, all_blocks, blocks_of
from support.peers import peers
from support.transcript import commands_of, is_as_shown, programs_of

from smtpd_fork.cli.config_file import read_config_file
from smtpd_fork.config import DaemonConfig

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterable

    from support.transcript import Command

MOST_NOT_RUN = 13
"""Blocks: what runs this test, what installs, and what takes docker or systemd."""

SHORTEST_REASON = 20
"""Characters."""

STAND_ALONE = Path(__file__).parents[1] / "support/stand_alone.py"

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

WITH_PEERS = {
    *("auth.md", "filters.md", "policy.md", "postfix-and-haproxy.md"),
    *("programs.md", "rspamd.md", "sinks.md"),
}
"""Pages whose commands start several other servers: make peers runs them."""


def blocks(language: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", all_blocks(language), ids=lambda block: block.place)


def test_every_block_is_of_a_kind_that_is_run() -> None:
    for block in all_blocks():
        assert block.fenced, f"{block.place}: fence it (```), and name its language"
        if not block.is_run:
            continue
        directive = re.fullmatch(r"\{[\w-]+\}( \S+)?", block.language)
        known = (
            directive
            or block.language in {"console", "python", "toml", "json", "mermaid"}
            or (block.language == "text" and "output" in block.marks)
        )
        assert known or "file" in block.marks, (
            f"{block.place}: nobody runs {block.language or 'a block without a language'!r}; "
            "see the head of tests/docs/test_docs.py"
        )


def test_what_is_not_run_has_a_reason_and_is_little() -> None:
    left_out = [block for block in all_blocks() if not block.is_run]
    for block in left_out:
        assert len(block.marks["not run"]) >= SHORTEST_REASON, f"{block.place}: say why"
    assert len(left_out) <= MOST_NOT_RUN, [block.place for block in left_out]


@pages
def test_every_file_of_a_page_is_used_by_a_command_behind_it(page: Path) -> None:
    for number, block in enumerate(blocks_of(page)):
        if block.is_run and (name := block.marks.get("file")):
            stem = Path(name).stem  # a handler is named without .py
            later = [b.text for b in blocks_of(page)[number:] if b.language == "console"]
            assert any(stem in text for text in later), f"{block.place}: nothing uses {name}"


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.peers if page.name in WITH_PEERS else ())
        for page in PAGES
    ],
    ids=lambda page: page.name,
)
def test_the_commands_of_a_page_do_what_it_shows(
    page: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = [block for block in blocks_of(page) if block.is_run]
    commands = {
        block.place: commands_of(block.text, block.line)
        for block in run
        if block.language == "console"
    }
    if not commands:
        return
    peers(*sorted(programs_called(commands.values())))
    with Machine(tmp_path, [programs(run, request)]) as machine:
        for block in run:
            if "file" in block.marks:
                machine.write(block.marks["file"], block.text)
            if block.language == "console":
                try:
                    for command in commands[block.place]:
                        machine.run(command)
                except (AssertionError, ValueError) as error:
                    pytest.fail(f"{block.place}: {error}", pytrace=False)


def programs_called(blocks: Iterable[list[Command]]) -> set[str]:
    """Return what has to be installed for the commands of a page."""
    called = {name for block in blocks for command in block for name in programs_of(command.text)}
    return called - {"smtpd-fork", "python"}


def programs(run: list[Block], request: pytest.FixtureRequest) -> Path:
    """Return the folder of ``smtpd-fork``: one that any user may use, if one is named."""
    if any(re.search(r"(^|\s)(-u|--user|user =)\s", block.text) for block in run):
        command: list[str] = request.getfixturevalue("command_for_nobody")
        return Path(command[0]).parent
    return Path(sys.executable).parent


def run_snippet(block: Block, folder: Path) -> subprocess.CompletedProcess[str]:
    # As it stands on the page, so that a traceback has its lines.
    file = folder / "snippet.py"
    file.write_text("\n" * (block.line - 1) + block.text)
    python = [sys.executable, "-X", "dev", "-W", "error", str(STAND_ALONE), str(file)]
    return run_alone(*python, cwd=folder, environment={"TZ": "UTC"})


@pytest.mark.timeout(120)
@blocks("python")
def test_a_snippet_is_a_program_that_stands_alone(block: Block, tmp_path: Path) -> None:
    ended = run_snippet(block, tmp_path)
    wrong = ("Traceback", "Exception ignored", "Warning:")
    if ended.returncode != 0 or any(word in ended.stderr for word in wrong):
        pytest.fail(f"{block.place}: status {ended.returncode}\n{ended.stderr}", pytrace=False)
    following = [b for b in blocks_of(page_of(block)) if b.line > block.line]
    if following and "output" in following[0].marks:
        shown = following[0].text
        if not is_as_shown(ended.stdout, shown):
            text = f"--- the page shows\n{shown}--- it prints\n{ended.stdout}---"
            pytest.fail(f"{block.place}: its output is another\n{text}", pytrace=False)


def page_of(block: Block) -> Path:
    return next(page for page in PAGES if block in blocks_of(page))


def test_what_is_called_output_follows_a_snippet() -> None:
    for page in PAGES:
        before = ""
        for block in blocks_of(page):
            if "output" in block.marks:
                assert before == "python", block.place
            before = block.language


@blocks("toml")
def test_a_file_of_settings_can_be_read(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "page.toml"
    file.write_text(block.text)
    DaemonConfig.build(read_config_file(file).values)


def test_json_can_be_read() -> None:
    for block in all_blocks("json"):
        try:
            json.loads(block.text)
        except ValueError as error:
            pytest.fail(f"{block.place}: {error}", pytrace=False)
