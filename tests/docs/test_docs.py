"""The commands and the snippets of README.md and docs/*.md are run.

How to write a block: each block is fenced and names its language; indented text is no block.

``console``
    A session in a shell. Lines that begin with ``$ `` (or with ``# ``, as root; the first line has
    the prompt) are commands, which continue behind a backslash, and on lines that begin with
    ``> ``. The other lines are the output, including standard error, and are compared. A line
    ``...`` stands for any number of lines, and ``...`` in a line for any text. Times, ids, pids,
    numbers with a unit or a decimal point, and numbers of five or more digits may differ (the list
    is ``_LOOSE`` in support/transcript.py). A command without output has to print nothing, and to
    succeed.

    All console blocks of a page run in order in one shell, as root, in separate namespaces
    (support/machine.py). The host name is mx.example.com, the only network interface is loopback,
    and all ports are free. The page begins in /srv, which has Makefile and examples/ as in a clone.
    The next page sees neither the processes of this one nor its changes to /srv, /etc, /run,
    /var/log and /var/mail. So start a daemon with ``-d``, and other background programs with ``&``;
    the test waits for their later output. A command that only reads (cat, grep, curl and so on,
    ``_LOOKS`` there) is repeated until its output matches. Standard input is /dev/null.
    ``smtpd-fork`` is this project's.
``python``
    A complete program that ends; ``await`` is allowed anywhere. Warnings are errors.
``text`` after ``<!-- output -->``
    The output of the ``python`` block before it, compared in the same way.
``toml``
    A valid file for ``--config``.
``json``
    A valid JSON document.
``{toctree}`` and other words in braces
    A directive of Sphinx: test_site.py builds the site.
``mermaid``
    A diagram, made by ``make papers``: test_papers.py checks that it is up to date.

``<!-- file: NAME -->`` before a block writes it to NAME (relative to /srv, or below /etc) before
the next console block runs; a later command has to name the file. A block in any other language
needs this comment, because only the program that reads the file can check it.

``<!-- not run: REASON -->`` before a block is only for blocks that a test cannot run.
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
"""Number of blocks that are not run: they run this test, install, or need docker or systemd."""

SHORTEST_REASON = 20
"""Length of the shortest reason, characters."""

STAND_ALONE = Path(__file__).parents[1] / "support/stand_alone.py"

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

WITH_PEERS = {
    *("auth.md", "filters.md", "policy.md", "postfix-and-haproxy.md"),
    *("programs.md", "rspamd.md", "sinks.md"),
}
"""Pages whose commands start several other servers; ``make peers`` runs them."""


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
            f"{block.place}: no test runs {block.language or 'a block without a language'!r}; "
            "see the head of tests/docs/test_docs.py"
        )


def test_blocks_that_are_not_run_are_few_and_have_a_reason() -> None:
    left_out = [block for block in all_blocks() if not block.is_run]
    for block in left_out:
        assert len(block.marks["not run"]) >= SHORTEST_REASON, f"{block.place}: give a reason"
    assert len(left_out) <= MOST_NOT_RUN, [block.place for block in left_out]


@pages
def test_every_file_of_a_page_is_used_by_a_command_behind_it(page: Path) -> None:
    for number, block in enumerate(blocks_of(page)):
        if block.is_run and (name := block.marks.get("file")):
            stem = Path(name).stem  # The name of a handler has no .py.
            later = [b.text for b in blocks_of(page)[number:] if b.language == "console"]
            assert any(stem in text for text in later), f"{block.place}: no command uses {name}"


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
    """Return the requirements of the commands of a page."""
    called = {name for block in blocks for command in block for name in programs_of(command.text)}
    return called - {"smtpd-fork", "python"}


def programs(run: list[Block], request: pytest.FixtureRequest) -> Path:
    """Return the directory of ``smtpd-fork``: one that any user may use, if a page names a user."""
    if any(re.search(r"(^|\s)(-u|--user|user =)\s", block.text) for block in run):
        command: list[str] = request.getfixturevalue("command_for_nobody")
        return Path(command[0]).parent
    return Path(sys.executable).parent


def run_snippet(block: Block, folder: Path) -> subprocess.CompletedProcess[str]:
    # At its line number on the page, so that tracebacks are correct.
    file = folder / "snippet.py"
    file.write_text("\n" * (block.line - 1) + block.text)
    python = [sys.executable, "-X", "dev", "-W", "error", str(STAND_ALONE), str(file)]
    return run_alone(*python, cwd=folder, environment={"TZ": "UTC"})


@pytest.mark.timeout(120)
@blocks("python")
def test_a_snippet_is_a_complete_program(block: Block, tmp_path: Path) -> None:
    ended = run_snippet(block, tmp_path)
    wrong = ("Traceback", "Exception ignored", "Warning:")
    if ended.returncode != 0 or any(word in ended.stderr for word in wrong):
        pytest.fail(f"{block.place}: status {ended.returncode}\n{ended.stderr}", pytrace=False)
    following = [b for b in blocks_of(page_of(block)) if b.line > block.line]
    if following and "output" in following[0].marks:
        shown = following[0].text
        if not is_as_shown(ended.stdout, shown):
            text = f"--- the page shows\n{shown}--- it prints\n{ended.stdout}---"
            pytest.fail(f"{block.place}: its output differs\n{text}", pytrace=False)


def page_of(block: Block) -> Path:
    return next(page for page in PAGES if block in blocks_of(page))


def test_an_output_block_follows_a_snippet() -> None:
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
