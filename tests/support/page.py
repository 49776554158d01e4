"""Pages of the documentation: their fenced blocks, and the comments that say how to run each."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt

from support.installation import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from markdown_it.token import Token

_APART = {"architecture.md", "tls.md"}
"""Pages with separate tests: test_architecture.py, test_tls_page.py."""

PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in _APART),
]

_COMMENT = re.compile(r"<!--\s*(not run|file|output)\s*(?::\s*(.*?))?\s*-->", re.DOTALL)


def read(name: str) -> str:
    """Return the text of a file of the project."""
    return (ROOT / name).read_text()


@dataclass
class Block:
    """A fenced block of a page.

    :ivar page: the page's path below the project's directory
    :ivar line: the number of its first line
    :ivar language: the word behind the fence
    :ivar marks: the comments right before it: ``not run``, ``file``, ``output``
    :ivar fenced: false: it is only indented
    :ivar text: its content
    """

    page: str
    line: int
    language: str
    marks: dict[str, str]
    fenced: bool
    text: str = field(repr=False)

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        return "not run" not in self.marks


@cache
def blocks_of(page: Path) -> tuple[Block, ...]:
    """Return the blocks of *page*, in order."""
    found = []
    marks: dict[str, str] = {}
    for token in MarkdownIt("commonmark").parse(page.read_text()):
        if token.type == "html_block":
            marks |= {kind: (word or "").strip() for kind, word in _COMMENT.findall(token.content)}
        elif token.type in {"fence", "code_block"}:
            found.append(_block(page, token, marks))
            marks = {}
        elif token.type not in {"paragraph_close", "list_item_open", "bullet_list_open"}:
            assert not marks, f"{page.name}: no block follows {marks}"
    return tuple(found)


def _block(page: Path, token: Token, marks: dict[str, str]) -> Block:
    assert token.map is not None
    return Block(
        page=str(page.relative_to(ROOT)),
        line=token.map[0] + (2 if token.type == "fence" else 1),
        language=token.info.strip(),
        marks=marks,
        fenced=token.type == "fence",
        text=token.content,
    )


def all_blocks(language: str | None = None) -> list[Block]:
    """Return the blocks of all pages, or those of one language that are run."""
    blocks = [block for page in PAGES for block in blocks_of(page)]
    if language is None:
        return blocks
    return [block for block in blocks if block.language == language and block.is_run]
