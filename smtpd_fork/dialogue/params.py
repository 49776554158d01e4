"""Parameters of MAIL and RCPT (RFC 5321 4.1.1.11): the syntax, and the values of extensions."""

from __future__ import annotations

import re

__all__ = ["Params", "invalid_value", "parse_params"]

Params = dict[str, str | bool]
"""Name in capitals, and value as received; True for a parameter without a value."""

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
"""The valid values of parameters of DSN and AUTH."""


def parse_params(text: str) -> Params | None:
    """Return the parameters in *text*; None if it is malformed, or a parameter is repeated."""
    params: Params = {}
    for word in text.split(" "):
        if not word:
            continue
        match = _PARAM.fullmatch(word)
        if match is None or match[1].upper() in params:
            return None
        params[match[1].upper()] = True if match[2] is None else match[2]
    return params


def invalid_value(params: Params) -> str | None:
    """Return the name of a parameter of DSN or AUTH with an invalid value, or None."""
    for name, allowed in _VALUES.items():
        if name in params:
            value = params[name]
            if not isinstance(value, str) or not allowed.fullmatch(value):
                return name
    return None
