"""Paths: the address of MAIL and RCPT, strictly by RFC 5321 4.1.2 (and RFC 6531 for UTF-8).

One lenience that real clients need: a space after the colon. Nothing else: a server that takes
what it does not understand hands it to handlers that understand something else.
"""

from __future__ import annotations

import re
from socket import AF_INET, AF_INET6, inet_pton

__all__ = ["NULL", "parse_path"]

NULL = "<>"
"""The null sender, as aiosmtpd hands it to handlers."""

LONGEST_DOMAIN = 255
"""Octets: RFC 5321 4.5.3.1.2. No limit of 64 for a local part: SRS, VERP and BATV need more."""

# All that is not ASCII is allowed (RFC 6531), so what is not allowed is said: sets that go up to
# U+10FFFF would take a tenth of a second to compile, at each start.
_ATOM = r"""[^\x00- "(),.:;<>@\[\\\]\x7f]+"""
_ALNUM = r"[^\x00-/:-@\[-^`{-\x7f]"
_HYPHENS_TOO = r"[^\x00-,./:-@\[-^`{-\x7f]"
_SUB = rf"{_ALNUM}(?:{_HYPHENS_TOO}*{_ALNUM})?"
_DOMAIN = rf"{_SUB}(?:\.{_SUB})*\.?"
_QUOTED = r'"(?:[^\x00-\x1f"\\\x7f]|\\[ -~])*"'
# An address of IPv4, one of IPv6 behind its tag, or another tag and what it says (4.1.3).
_LITERAL = r"\[(?:[0-9.]+|[A-Za-z0-9-]*[A-Za-z0-9]:[!-Z^-~]+)\]"

_FAST = re.compile(r"<([A-Za-z0-9_+=-]+(?:\.[A-Za-z0-9_+=-]+)*@[A-Za-z0-9]+(?:[.-][A-Za-z0-9]+)*)>")
_FULL = re.compile(
    rf"<(?:(?:@{_DOMAIN}(?:,@{_DOMAIN})*):)?"  # a source route is read and ignored (appendix C)
    rf"((?P<local>{_ATOM}(?:\.{_ATOM})*|{_QUOTED})@(?P<domain>{_DOMAIN}|{_LITERAL})|(?ai:postmaster))>"
)


def parse_path(text: str) -> tuple[str, str] | None:
    """Return the address at the beginning of *text* and what follows it; None if there is none.

    The null path is ``<>``. What follows begins with a space, or is empty.
    """
    match = _FAST.match(text)
    if match is None:
        if text.startswith(NULL):
            return (NULL, text[2:]) if text[2:3] in {"", " "} else None
        match = _FULL.match(text)
        if match is None:
            return None
    rest = text[match.end() :]
    if rest and not rest.startswith(" "):
        return None
    address = match[1]
    domain = address.rpartition("@")[2]
    if domain.startswith("[") and not _is_literal(domain[1:-1]):
        return None
    if len(domain) > LONGEST_DOMAIN // 4 and len(domain.encode()) > LONGEST_DOMAIN:
        return None
    return address, rest


def _is_literal(text: str) -> bool:
    """Whether *text* is an address of the family that it says it is of."""
    tag, colon, rest = text.partition(":")
    if colon and tag.lower() != "ipv6":
        return True
    try:
        inet_pton(AF_INET6 if colon else AF_INET, rest if colon else text)
    except OSError:
        return False
    return True
