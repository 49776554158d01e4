"""The glossary: texts for users contain no word that has a better one in the field."""

from __future__ import annotations

import ast
import re
import tokenize
from io import StringIO
from types import FunctionType
from typing import TYPE_CHECKING

import click
import pytest
from support.installation import ROOT
from support.page import read

import smtpd_fork
from smtpd_fork import testing
from smtpd_fork.cli.command import SUBCOMMANDS, command
from smtpd_fork.cli.manual_page import ENVIRONMENT, EXAMPLES, FILES, SIGNALS
from smtpd_fork.cli.options import OPTIONS
from smtpd_fork.dialogue import replies
from smtpd_fork.errors import MEANINGS
from smtpd_fork.gate.statistics import CURES
from smtpd_fork.observe.logs.fields import FIELDS
from smtpd_fork.observe.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

START = r"(\A|\n\n|^ *([-*#]+|\d\.|#:|\.[A-Z]+) +|[.!?]\s+|\| )"
"""Matches before the beginning of a sentence, list item, heading, comment or table cell."""

USE = {
    r"\bsources?\b": "client, origin",
    r"\bplaces?\b|\b(no|waiting|make) room\b": "connection slot",
    r"\bfolders?\b": "directory",
    r"\bheirs?\b|\bholdings\b|\bestate\b": "child process, inherited sockets",
    r"\btake-?overs?\b|\btak(en|es?|ing) over\b": "upgrade",
    r"\bloop (is|may be|was) .*\blate\b": "event-loop lag",
    r"\bfrom the first byte\b": "implicit TLS",
    r"\bauthorities\b": "CA certificate",
    r"\bin the clear\b": "plaintext",
    r"\bcompanions?\b|\bjanitors?\b": "background service, helper process",
    r"\bblamed?\b": "option origin",
    r"\bfront[ -]doors?\b": "server",
    r"\b(is|are|was|were|be|been|being) told\b": "gets, receives",
    r"\b(let|comes?|coming|came)\s+in\b(?! (a|the)\b)|\b(sent|turned) away\b":
        "admitted, accepted, refused",
    r"\brehears": "testing",
    r"\bfigures?\b": "number, value",
    r"\bfaults?\b": "error",
    r"\bwhoever\b|\bwhomever\b": "the client, the administrator",
    r"\bnobody\b|\bsomebody\b|\banybody\b": "a noun",
    rf"{START}(Who|Whose|Whom|What)\b": "a noun as the subject",
    r"[;:—|]\s(who|whose|whom|what)\b": "a noun as the subject",
    r"\b(and|but|or)\s(who|whose)\b": "a noun as the subject",
    r"\bwhat (is|was|cannot|comes|came|has|goes)\b": "a noun",
}  # fmt: skip
"""Patterns, each with what to write instead (STYLE.md's table)."""

IN_NAMES = {"admitted, accepted, refused", "connection slot", "error", "number, value"}
"""Replacements of words that also are names in the code, or have another meaning there."""

IN_CODE = {
    pattern: use
    for pattern, use in USE.items()
    if use not in IN_NAMES and not use.startswith("a noun")
}
"""Patterns for docstrings and comments that only developers read."""

ALLOWED = {
    r"smtp-source": "a program of Postfix",
    r"source route": "RFC 5321's term",
    r"<source media=": "an element of HTML",
    r"Source code": "of a program",
    r"sed --in-place": "an option of sed",
    r"\"fault\":": "a key of the control protocol",
    r"-u nobody|<nobody@example.com>": "a user",
}
"""Phrases that are no violation, each with the reason."""

PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in (
        "*.md", "docs/*.md", "examples/*", "packaging/*.8", "packaging/*.service",
        "packaging/*.socket", "packaging/*.yaml", "packaging/deb/*", "packaging/fail2ban/*",
    )
    for path in ROOT.glob(pattern)
    if path.is_file() and path.name != "CHANGELOG.md"
)  # fmt: skip
"""All pages except the changelog, which names former behaviour."""

CALLS = {
    *("critical", "debug", "error", "exception", "info", "log", "report", "warning"),
    *("Refusal", "echo", "reply_line", "say"),
}
"""Functions whose texts users read, in addition to the constructors of errors."""

TEXTS = {"REASON", "TEXT", "reason", "text"}
"""Variables that hold the text of an error or a reply."""


def violations(where: str, text: str, glossary: Mapping[str, str] = USE) -> Iterator[str]:
    # The name of an option, a field, a file or a parameter.
    text = re.sub(r"`[^`\s]+`|\*\w+\*", "`x`", text)
    for phrase in ALLOWED:
        text = re.sub(phrase, "", text)
    for pattern, use in glossary.items():
        for found in re.finditer(pattern, text, re.MULTILINE):
            line = text.count("\n", 0, found.end()) + 1
            yield f"{where}:{line}: {found[0].strip()!r}: use {use}"


def texts_of_the_code() -> Iterator[tuple[str, str]]:
    """Return the texts in log calls, errors and refusals, each with its file and line."""
    for path in sorted((ROOT / "smtpd_fork").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            for part in (each for root in shown_by(node) for each in ast.walk(root)):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield f"{path.relative_to(ROOT)} at line {part.lineno}", part.value


def shown_by(node: ast.AST) -> list[ast.AST]:
    """Return the parts of *node* with texts that users read."""
    if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in TEXTS:
        return [node.value]
    if isinstance(node, ast.Yield) and isinstance(node.value, (ast.Constant, ast.JoinedStr)):
        return [node.value]
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in CALLS or name.endswith("Error"):
            return [*node.args, *node.keywords]
    return []


def docstrings() -> Iterator[tuple[str, str]]:
    """Return the docstrings of public names, and of their public methods."""
    for module in (smtpd_fork, testing):
        yield module.__name__, str(module.__doc__)
        for name in module.__all__:
            public = getattr(module, name)
            if not getattr(public, "__module__", "").startswith("smtpd_fork"):
                continue
            yield f"{module.__name__}.{name}", str(public.__doc__)
            for attribute, member in vars(public).items():
                if not attribute.startswith("_") and isinstance(member, (FunctionType, property)):
                    yield f"{module.__name__}.{name}.{attribute}", str(member.__doc__)


def notes_in_the_code() -> Iterator[tuple[str, str]]:
    """Return all docstrings and comments, each with its file and line."""
    for path in sorted((ROOT / "smtpd_fork").rglob("*.py")):
        where, text = path.relative_to(ROOT), path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                yield f"{where} at line {node.lineno}", str(node.value.value)
        for token in tokenize.generate_tokens(StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                yield f"{where} at line {token.start[0]}", token.string


def texts() -> Iterator[tuple[str, str]]:
    for option in OPTIONS:
        yield f"--{option.long_name}", f"{option.help} {option.default_text}"
    for name, each in {"": command, **SUBCOMMANDS}.items():
        with click.Context(each) as ctx:
            yield f"smtpd-fork {name} --help", each.get_help(ctx)
    yield from ((name, str(text)) for name, text in vars(replies).items() if name.isupper())
    yield from ((row.name, row.text) for row in METRICS)
    for table in (CURES, FIELDS, SIGNALS, ENVIRONMENT, FILES, EXAMPLES, MEANINGS):
        yield from ((str(name), text) for name, text in table.items())
    page = read("smtpd_fork/observe/status_page.html").partition("</style>")[2]
    yield "status_page.html", re.sub(r"\$\w+", "", page)
    yield from texts_of_the_code()
    yield from docstrings()


def test_no_text_of_the_program_has_a_word_that_the_glossary_replaces() -> None:
    assert [each for where, text in texts() for each in violations(where, text)] == []


def test_no_docstring_and_no_comment_has_a_word_that_the_glossary_replaces() -> None:
    notes = notes_in_the_code()
    assert [each for where, text in notes for each in violations(where, text, IN_CODE)] == []


@pytest.mark.parametrize("page", PAGES)
def test_no_page_has_a_word_that_the_glossary_replaces(page: str) -> None:
    assert list(violations(page, read(page))) == []


def test_every_exception_is_needed() -> None:
    pages = "\n".join(map(read, PAGES))
    assert [phrase for phrase in ALLOWED if not re.search(phrase, pages)] == []


@pytest.mark.parametrize(
    ("text", "use"),
    [
        ("fine\nThe client is told 421.", "gets, receives"),
        ("New clients, who is in stays in. What cannot be is an error.", "a noun as the subject"),
        ("Sessions go on; who comes next gets 421.", "a noun as the subject"),
        ("# The socket\n# What is spoken there: smtp.", "a noun as the subject"),
        ("Nothing may come in now.", "admitted, accepted, refused"),
    ],
)
def test_a_violation_is_found_and_says_where(text: str, use: str) -> None:
    line = text.count("\n") + 1
    found = list(violations("page", text))
    assert found
    assert found[0].startswith(f"page:{line}: ")
    assert any(each.endswith(f": use {use}") for each in found)


@pytest.mark.parametrize(
    "start",
    [
        "event-loop lag",
        "Connections are accepted from trusted proxies only",
        "Refused for testing, try again later",
        "the sockets are inherited",
    ],
)
def test_the_texts_of_log_calls_refusals_and_errors_are_found(start: str) -> None:
    assert any(text.startswith(start) for _, text in texts_of_the_code())


# -- search terms ------------------------------------------------------------------------------

SEARCHED = {
    "README.md": ("pipx", "zero-downtime", "rate limit", "concurrency"),
    "docs/container.md": ("liveness", "readiness", "OpenShift"),
    "docs/control.md": ("graceful shutdown",),
    "docs/debug-a-refused-client.md": ("troubleshoot",),
    "docs/embedding.md": ("mypy", "pyright"),
    "docs/faq.md": ("FAQ", "throttle", "greylist", "DKIM", "587"),
    "docs/gate.md": (
        *("rate limit", "concurrency", "throttl", "allowlist", "denylist", "idle timeout"),
        *("reverse DNS", "PTR record", "greylist", "NAT", "tarpit"),
    ),
    "docs/handlers.md": ("milter", "greylist", "open relay"),
    "docs/monitoring.md": ("liveness", "readiness", "health check", "Prometheus"),
    "docs/operation.md": ("backpressure", "graceful shutdown", "zero-downtime upgrade"),
    "docs/policy.md": ("greylist", "SPF", "postgrey", "policy delegation protocol", "check_policy"),
    "docs/postfix-and-haproxy.md": ("milter", "LMTP", "PROXY header"),
    "docs/security.md": ("drop privileges", "fail2ban", "open relay", "SMTP smuggling"),
    "docs/systemd.md": ("socket activation", "upgrade", "watchdog", "sandboxing"),
    "docs/testing.md": ("pytest fixture",),
    "docs/tls.md": ("implicit TLS", "mTLS", "client certificate", "CA certificate", "SNI"),
}
"""Words of the field that each page must contain."""


@pytest.mark.parametrize("page", SEARCHED)
def test_a_page_has_the_words_that_its_readers_search_for(page: str) -> None:
    text = " ".join(read(page).split()).casefold()
    assert [word for word in SEARCHED[page] if word.casefold() not in text] == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.endswith(".md") and "{include}" not in read(page)]
)
def test_a_page_begins_with_a_paragraph(page: str) -> None:
    """It says what the page gives; a list, a table or a block does not come first."""
    title, paragraph = read(page).split("\n\n")[:2]
    assert title.startswith("# ")
    assert re.match(r"\w|`\w|\[\w", paragraph), paragraph
