"""Parameters of MAIL and RCPT (RFC 5321 4.1.1.11), and what the extensions allow in them."""

from __future__ import annotations

import re

__all__ = ["Params", "mail_fault", "parse_params", "rcpt_fault"]

Params = dict[str, str | bool]
"""Name in capitals, value as it came; True for a parameter without one."""

LONGEST_ENVID = 100
LONGEST_ORCPT = 500
"""Characters: RFC 3461 4.4 and 4.2."""

_PARAM = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-<>-~\u0080-\U0010ffff]+))?")
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")
_ORCPT = re.compile(r"[A-Za-z0-9-]+;.+")
_NOTIFY = re.compile(
    r"NEVER|(?:SUCCESS|FAILURE|DELAY)(?:,(?:SUCCESS|FAILURE|DELAY))*", re.ASCII | re.IGNORECASE
)


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


def mail_fault(params: Params) -> str | None:
    """Return the name of the parameter of MAIL whose value cannot be, of those of DSN and AUTH."""
    if "RET" in params and str(params["RET"]).upper() not in {"FULL", "HDRS"}:
        return "RET"
    envid = params.get("ENVID")
    if envid is not None and not _is_xtext(envid, LONGEST_ENVID):
        return "ENVID"
    identity = params.get("AUTH")
    if identity is not None and identity != "<>" and not _is_xtext(identity, LONGEST_ORCPT):
        return "AUTH"
    return None


def rcpt_fault(params: Params) -> str | None:
    """Return the name of the parameter of RCPT whose value cannot be."""
    notify = params.get("NOTIFY")
    if notify is not None and not _NOTIFY.fullmatch(str(notify)):
        return "NOTIFY"
    original = params.get("ORCPT")
    if original is not None and not (
        isinstance(original, str) and len(original) <= LONGEST_ORCPT and _ORCPT.fullmatch(original)
    ):
        return "ORCPT"
    return None


def _is_xtext(value: str | bool, longest: int) -> bool:
    return isinstance(value, str) and len(value) <= longest and _XTEXT.fullmatch(value) is not None
