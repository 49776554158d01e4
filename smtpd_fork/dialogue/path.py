"""Paths: the address of MAIL and RCPT, by RFC 5321 4.1.2 (and RFC 6531 for UTF-8).

Two deviations of real clients are accepted unless ``strict`` is set: an address without angle
brackets, and a tab instead of a space. A display name, a comment or other text directly before or
after the address is rejected, as its meaning is uncertain.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address

__all__ = ["NULL", "parse_path"]

NULL = "<>"
"""The null sender in the form in which aiosmtpd passes it to handlers."""

LONGEST_DOMAIN = 255
"""Octets (RFC 5321 4.5.3.1.2). The limits of 64 for a local part (4.5.3.1.1) and of 256 for a path
(4.5.3.1.3) are not enforced: SRS, VERP and BATV need more, and the length of a command limits
both."""

LONGEST_LABEL = 63
"""Octets of a label of a domain (RFC 1035 2.3.4). An internationalized label is measured in its
ASCII form (RFC 5890 2.3.2.1)."""

# All characters outside ASCII are allowed (RFC 6531), so the sets are negated: sets up to U+10FFFF
# would take a tenth of a second to compile, at each start. Control characters and line separators
# of Unicode are not allowed: an address must fit on one line of a header and of a log.
_NEVER = r"\x7f-\x9f\u2028\u2029"
_ATOM = rf"""[^\x00- "(),.:;<>@\[\\\]{_NEVER}]+"""
_ALNUM = rf"[^\x00-/:-@\[-^`{{|}}~{_NEVER}]"
_HYPHENS_TOO = rf"[^\x00-,./:-@\[-^`{{|}}~{_NEVER}]"
_SUB = rf"{_ALNUM}(?:{_HYPHENS_TOO}*{_ALNUM})?"
_DOMAIN = rf"{_SUB}(?:\.{_SUB})*"
_QUOTED = rf'"(?:[^\x00-\x1f"\\{_NEVER}]|\\[ -~])*"'
# The address literals of 4.1.3; IANA has registered no other tag than IPv6.
_LITERAL = r"\[(?:[0-9.]+|(?ai:IPv6):[0-9A-Fa-f:.]+)\]"
_MAILBOX = rf"(?:{_ATOM}(?:\.{_ATOM})*|{_QUOTED})@(?:{_DOMAIN}|{_LITERAL})"

_FAST = re.compile(r"<([A-Za-z0-9_+=-]+(?:\.[A-Za-z0-9_+=-]+)*@[A-Za-z0-9]+(?:[.-][A-Za-z0-9]+)*)>")
_FULL = re.compile(
    rf"<(?:(?:@{_DOMAIN}(?:,@{_DOMAIN})*):)?"  # a source route is read and ignored (appendix C)
    rf"({_MAILBOX}|(?ai:postmaster))>"
)
_BARE = re.compile(rf"({_MAILBOX}|(?ai:postmaster))")
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|[01]?[0-9]?[0-9])"
_IPV4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}")


def parse_path(
    text: str, *, strict: bool = False, postmaster: bool = True
) -> tuple[str, str] | None:
    """Return the address at the start of *text* and the text after it; None if there is no address.

    The null path is ``<>``. The text after the address begins with a space or a tab, or is empty.

    :param strict: reject an address without angle brackets, and a tab after it
    :param postmaster: accept ``postmaster`` without a domain (RFC 5321 4.1.1.3: only as a
        recipient)
    """
    match = _FAST.match(text)
    if match is None:
        if text.startswith(NULL):
            address, rest = NULL, text[2:]
            return (address, rest) if _ends_there(rest, strict=strict) else None
        match = _FULL.match(text)
        if match is None and not strict:
            match = _BARE.match(text)
        if match is None:
            return None
    address, rest = match[1], text[match.end() :]
    if rest and not _ends_there(rest, strict=strict):
        return None
    _, at, domain = address.rpartition("@")
    return (address, rest) if (_is_domain(domain) if at else postmaster) else None


def _ends_there(rest: str, *, strict: bool) -> bool:
    """Return whether *rest* does not continue the address before it."""
    return rest[:1] in ({"", " "} if strict else {"", " ", "\t"})


def _is_domain(domain: str) -> bool:
    """Return whether a domain or address literal of the right form has valid lengths and values."""
    if domain.startswith("["):
        return _is_literal(domain[1:-1])
    if len(domain) <= LONGEST_LABEL and domain.isascii():
        return True
    return len(domain.encode()) <= LONGEST_DOMAIN and all(map(_is_label, domain.split(".")))


def _is_label(label: str) -> bool:
    """Return whether a label is short enough, measured in its ASCII form."""
    if len(label) > LONGEST_LABEL or label.isascii():
        return len(label) <= LONGEST_LABEL
    return len("xn--") + len(label.encode("punycode")) <= LONGEST_LABEL


def _is_literal(text: str) -> bool:
    """Return whether *text* is a valid IPv4 address, or IPv6 address with its tag."""
    tag, colon, rest = text.partition(":")
    if not colon:
        return _IPV4.fullmatch(tag) is not None
    head, _, tail = rest.rpartition(":")
    if "." in tail:
        # RFC 5321 allows the leading zeros that inet_pton(3) does not.
        if not _IPV4.fullmatch(tail):
            return False
        rest = f"{head}:0.0.0.0"
    try:
        IPv6Address(rest)
    except ValueError:
        return False
    return True
