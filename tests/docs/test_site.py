"""The documentation site: make docs builds it, and it works without a network.

Tests that need Sphinx or a browser have the mark ``site``; ``make docs-test`` runs them.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest
from support.installation import ROOT
from support.page import read
from support.peers import cannot, peer

import smtpd_fork.testing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, BrowserContext

DOCS = ROOT / "docs"


# -- the order of the pages ------------------------------------------------------------------------


def pages_of_the_index() -> list[str]:
    trees = re.findall(r"```\{toctree\}\n(?::.*\n)*\n([^`]*)```", read("docs/index.md"))
    return [name for tree in trees for name in tree.split()]


def test_the_index_has_each_page_once() -> None:
    names = sorted(page.stem for page in DOCS.glob("*.md") if page.stem != "index")
    assert sorted(pages_of_the_index()) == names


# -- the hooks -------------------------------------------------------------------------------------


def signatures_of_the_code() -> dict[str, str]:
    """Return the hooks of ``hooks.py`` by name, as the author of a handler writes them."""
    found = {}
    for node in ast.walk(ast.parse(read("smtpd_fork/handlers/hooks.py"))):
        if not isinstance(node, ast.FunctionDef):
            continue
        named = [*node.args.posonlyargs, *node.args.args]
        words = [f"{a.arg}: {ast.unparse(a.annotation)}" for a in named if a.annotation]
        assert node.returns is not None
        # A coroutine function returns an awaitable; the page has the result of it.
        returns = re.sub(r"(?:\w+ \| )?Awaitable\[(.*)\]", r"\1", ast.unparse(node.returns))
        found[node.name] = f"{node.name}({', '.join(words)}) -> {returns}"
    return found


def test_the_page_of_hooks_has_each_hook_with_its_signature() -> None:
    rows = re.findall(r"^\| `((?:handle|process)_.+?)` \| ", read("docs/hooks.md"), re.MULTILINE)
    documented = {row.partition("(")[0]: row.replace("\\|", "|") for row in rows}
    assert documented == signatures_of_the_code()


def test_each_hook_documents_its_call_its_result_and_its_default() -> None:
    lines = re.findall(r"^\| `(?:handle|process)_.*", read("docs/hooks.md"), re.MULTILINE)
    for line in lines:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        assert len(cells) == 4
        deprecated = "process_message" in cells[0]
        assert all(cells) or deprecated, line


# -- the names -------------------------------------------------------------------------------------


def test_the_page_of_the_api_has_each_public_name() -> None:
    pattern = r"^\.\. (?:auto)?(?:class|exception|data|function):: (\w+)"
    documented = re.findall(pattern, read("docs/api.md"), re.MULTILINE)
    assert sorted(documented) == sorted([*smtpd_fork.__all__, *smtpd_fork.testing.__all__])


# -- the site itself -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors in a network namespace without a network."""
    if find_spec("sphinx") is None:
        cannot("sphinx is not installed (make docs-test installs it)")
    folder = tmp_path_factory.mktemp("site")
    alone = [peer("unshare"), "--net", "--map-root-user"]
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(folder / "tmp")]
    ended = subprocess.run(
        [*alone, *build, str(DOCS), str(folder / "html")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return folder / "html"


@pytest.fixture
def offline(browser: Browser) -> Iterator[tuple[BrowserContext, list[str]]]:
    """A browser without a network, and its requests."""
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    asked: list[str] = []

    def note(url: str) -> None:
        if not url.startswith(("file:", "data:")):
            asked.append(url)

    context.on("request", lambda request: note(request.url))
    yield context, asked
    context.close()


@pytest.mark.site
@pytest.mark.timeout(180)
def test_every_page_is_built_and_links_lead_to_files_of_the_site(site: Path) -> None:
    for name in ("index", *pages_of_the_index()):
        page = site / f"{name}.html"
        for target in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text()):
            if not re.match(r"(https?|mailto|data):", target):
                assert (page.parent / unquote(target)).exists(), f"{name}: {target}"


@pytest.mark.site
def test_the_pages_request_nothing_outside_the_site(site: Path) -> None:
    for page in site.glob("*.html"):
        assert not re.findall(r'<(?:script|img)[^>]+src="(?:https?:)?//', page.read_text())
        assert not re.findall(r'<link[^>]+href="(?:https?:)?//', page.read_text())
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\([\"']?(?:https?:)?//", sheet.read_text())


@pytest.mark.site
def test_the_first_page_is_a_picture_with_the_four_sections(
    site: Path, offline: tuple[BrowserContext, list[str]], tmp_path: Path
) -> None:
    context, asked = offline
    page = context.new_page()
    page.goto((site / "index.html").as_uri())
    menu = page.inner_text(".sidebar-tree")
    for section in ("Tutorial", "How-to guides", "Reference", "Explanation"):
        assert section.upper() in menu.upper()
    assert len(page.screenshot(path=tmp_path / "index.png")) > 20_000
    assert asked == []


@pytest.mark.site
@pytest.mark.parametrize(
    ("word", "found"),
    [("greet-pause", "gate"), ("handle_RCPT", "hooks"), ("ThreadedServer", "api")],
)
def test_the_search_works_offline(
    site: Path, offline: tuple[BrowserContext, list[str]], word: str, found: str
) -> None:
    context, asked = offline
    page = context.new_page()
    page.goto(f"{(site / 'search.html').as_uri()}?q={word}")
    page.get_by_text("Search finished").wait_for()
    links = page.eval_on_selector_all(
        "#search-results ul.search li a", "all => all.map(a => a.getAttribute('href'))"
    )
    assert any(link.startswith(f"{found}.html") for link in links)
    assert asked == []


@pytest.mark.site
def test_the_pictures_of_the_readme_can_be_taken_again(tmp_path: Path) -> None:
    peer("chromium")
    script = str(ROOT / "tests/docs/pictures.py")
    subprocess.run([sys.executable, script, "--minutes", "0.05", "--to", tmp_path], check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "status-dark.png",
        "status-light.png",
    ]
