"""docs/accepted-mail.md: each server behaves as the page's tables say.

``make peers`` runs this file: real Postfix, Exim and Haraka take part.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from peers.inputs import INPUTS
from peers.servers import SERVERS, smtpd_fork
from support.page import read

if TYPE_CHECKING:
    from collections.abc import Iterator

# The first run installs nodemailer and Haraka, and compiles a program in Go.
pytestmark = [pytest.mark.peers, pytest.mark.timeout(300)]

PAGE = "docs/accepted-mail.md"

_WITH_OPTION = re.compile(r"`(?P<options>--[^`]+)`: (?P<result>.+)")


def _table() -> dict[str, dict[str, str]]:
    """Return the cells of the page's first tables by row and heading."""
    table: dict[str, dict[str, str]] = {}
    heading: list[str] = []
    for line in read(PAGE).splitlines():
        if not line.startswith("|"):
            heading = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not heading:
            heading = cells
        elif "Postfix" in heading and not line.startswith("| ---"):
            table[cells[0]] = dict(zip(heading[1:], cells[1:], strict=True))
    return table


TABLE = _table()

OPTIONS = sorted(
    {match["options"] for row in TABLE.values() if (match := _WITH_OPTION.match(row["Option"]))}
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a directory that the users of other servers can enter."""
    path = Path(tempfile.mkdtemp(prefix="smtpd-fork-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_the_page_has_the_rows_that_are_measured() -> None:
    assert list(TABLE) == list(INPUTS)


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_does_what_its_column_says(name: str, folder: Path) -> None:
    with SERVERS[name](folder) as port:
        measured = {row: ask(port) for row, ask in INPUTS.items()}
    assert measured == {row: cells[name] for row, cells in TABLE.items()}


@pytest.mark.parametrize("options", OPTIONS)
def test_an_option_does_what_its_cells_say(options: str, folder: Path) -> None:
    expected = {
        row: match["result"]
        for row, cells in TABLE.items()
        if (match := _WITH_OPTION.match(cells["Option"])) and match["options"] == options
    }
    with smtpd_fork(folder, *options.split()) as port:
        measured = {row: INPUTS[row](port) for row in expected}
    assert measured == expected
    for row, result in expected.items():
        assert result != TABLE[row]["smtpd-fork"], f"{options} changes nothing of: {row}"
