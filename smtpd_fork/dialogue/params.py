"""Parameters of MAIL and RCPT (RFC 5321 4.1.1.11), and what the extensions allow in them."""

from __future__ import annotations

import re

__all__ = ["Params", "fault_of", "parse_params"]

Params = dict[str, str | bool]
"""Name in capitals, value as it came; True for a parameter without one."""

LONGEST_ENVID = 100
LONGEST_ORCPT = 500
"""Characters: RFC 3461 4.4 and 4.2."""

_PARAM = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-<>-~\u0080-\U0010ffff]+))?")
_XTEXT = r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*"
_EVENT = "(?:SUCCESS|FAILURE|DELAY)"
_VALUES = {
    "RET": re.compile("FULL|HDRS", re.IGNORECASE),
    "ENVID": re.compile(rf"(?!.{{{LONGEST_ENVID + 1}}}){_XTEXT}"),
    "AUTH": re.compile(rf"<>|(?!.{{{LONGEST_ORCPT + 1}}}){_XTEXT}"),
    "NOTIFY": re.compile(rf"NEVER|{_EVENT}(?:,{_EVENT})*", re.ASCII | re.IGNORECASE),
    "ORCPT": re.compile(rf"(?!.{{{LONGEST_ORCPT + 1}}})[A-Za-z0-9-]+;.+"),
}
"""What a parameter of DSN or AUTH may be."""


def parse_params(text: str) -> Params | None:
    """Return the parameters in *text*; None if it holds something else, or one of them twice."""
    params: Params = {}
    for word in text.split(" "):
        if not word:
            continue
        match = _PARAM.fullmatch(word)
        if match is None or match[1].upper() in params:
            return None
        params[match[1].upper()] = True if match[2] is None else match[2]
    return params


def fault_of(params: Params) -> str | None:
    """Return the name of a parameter of DSN or AUTH that has no such value."""
    for name, allowed in _VALUES.items():
        if name in params:
            value = params[name]
            if not isinstance(value, str) or not allowed.fullmatch(value):
                return name
    return None
