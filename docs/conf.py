"""Configuration of the documentation site: ``make docs`` builds it into build/docs, offline.

Pages are Markdown (MyST) and can be read on a forge as well; the order of the site is in index.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from pygments.lexers.special import TextLexer

from smtpd_fork import __version__, peer_address
from smtpd_fork.gate import client, ledger, ticket

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "smtpd-fork"
author = "The smtpd-fork developers"
copyright = author  # noqa: A001 - Sphinx's name
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 4
nitpicky = False  # annotations name classes of asyncio and aiosmtpd, which have no page here

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"smtpd-fork {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
# Summaries below the hits are fetched, which a browser forbids for pages that are files.
html_show_search_summary = False


def setup(app: Sphinx) -> None:
    """Show the languages that Pygments does not know as plain text, and see to links."""
    for language in ("conf", "haproxy", "mermaid"):
        app.add_lexer(language, TextLexer)
    # msgspec evaluates a struct's annotations for its signature; these are imported for mypy alone.
    for module, name in ((client, "Client"), (ledger, "Holder"), (peer_address, "Peer")):
        setattr(ticket, name, getattr(module, name))
    ticket.Callable = Callable
    app.connect("source-read", lead_to_pages)
    app.connect("include-read", lead_out_of_included_pages)


PAGE_OF = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
}
"""Files outside of docs/, and the pages that include them."""


def lead_to_pages(_app: Sphinx, _name: str, source: list[str]) -> None:
    """Have links to files that a page includes lead to that page."""
    for file, page in PAGE_OF.items():
        source[0] = source[0].replace(f"](../{file}", f"]({page}")


def lead_out_of_included_pages(_app: Sphinx, _path: object, _name: str, text: list[str]) -> None:
    """Have the links of an included file, which stands one directory higher, lead where they do."""
    text[0] = re.sub(r"\]\((?!https?:|#|docs/)", "](../", text[0]).replace("](docs/", "](")
    lead_to_pages(_app, _name, text)
