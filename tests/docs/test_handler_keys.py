"""The keys of the built-in handlers are documented in the section of their handler."""

from __future__ import annotations

from importlib import import_module

import pytest
from support.installation import ROOT

from smtpd_fork.handlers.load import BUILT_IN
from smtpd_fork.handlers.parameters import Parameters

PAGES = {
    "accept": "accept", "auth": "auth", "milter": "filters", "policy": "policy",
    "rspamd": "rspamd",
}  # fmt: skip
HEADINGS = {
    "accept": "Settings", "auth": "Settings",
    "lmtp": "lmtp and relay", "relay": "lmtp and relay",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BUILT_IN.keys() - {"debug", "discard"}))
def test_each_key_of_a_built_in_handler_is_in_the_table_of_its_section(name: str) -> None:
    page = PAGES.get(name, "sinks")
    heading = HEADINGS.get(name, name)
    text = (ROOT / f"docs/{page}.md").read_text()
    _, found, section = text.partition(f"\n## {heading}\n")
    assert found
    table = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    cells = " ".join(line.split("|")[1] for line in table)
    module, _, kind = BUILT_IN[name].partition(":")
    keys = Parameters(getattr(import_module(module), kind), strict=True).keys
    assert [key for key in keys if f"`{key}`" not in cells] == []
