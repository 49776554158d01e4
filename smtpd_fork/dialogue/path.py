"""Paths: the address of MAIL and RCPT, by RFC 5321 4.1.2 (and RFC 6531 for UTF-8).

Real clients need two liberties, which ``strict`` takes away: an address may stand without its
angle brackets, and a tab is a blank as a space is. A display name, a comment or a word glued to the
address is refused: what the client meant by it is not certain.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address

__all__ = ["NULL", "parse_path"]

NULL = "<>"
"""The null sender, as aiosmtpd hands it to handlers."""

LONGEST_DOMAIN = 255
"""Octets: RFC 5321 4.5.3.1.2. No limit of 64 for a local part (4.5.3.1.1), nor of 256 for a path
(4.5.3.1.3): SRS, VERP and BATV need more, and the length of a command bounds both."""

LONGEST_LABEL = 63
"""Octets between two dots of a domain, as the DNS has it: RFC 1035 2.3.4. An internationalized
label counts in its ASCII form (RFC 5890 2.3.2.1)."""

# All that is not ASCII is allowed (RFC 6531), so what is not allowed is said: sets that go up to
# U+10FFFF would take a tenth of a second to compile, at each start. Controls and line separators of
# Unicode are not: an address has to fit on one line of a header and of a log.
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
    """Return the address at the beginning of *text* and what follows it; None if there is none.

    The null path is ``<>``. What follows begins with a space or a tab, or is empty.

    :param strict: refuse an address without angle brackets, and a tab behind it
    :param postmaster: take ``postmaster`` without a domain (RFC 5321 4.1.1.3: as a recipient only)
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
    """Whether *rest* is behind an address, and not a part of it."""
    return rest[:1] in ({"", " "} if strict else {"", " ", "\t"})


def _is_domain(domain: str) -> bool:
    """Whether a domain or an address literal, well-formed by the grammar, is one by its values."""
    if domain.startswith("["):
        return _is_literal(domain[1:-1])
    if len(domain) <= LONGEST_LABEL and domain.isascii():
        return True
    return len(domain.encode()) <= LONGEST_DOMAIN and all(map(_is_label, domain.split(".")))


def _is_label(label: str) -> bool:
    """Whether a label is short enough; one that is not ASCII in the form that the DNS knows."""
    if len(label) > LONGEST_LABEL or label.isascii():
        return len(label) <= LONGEST_LABEL
    return len("xn--") + len(label.encode("punycode")) <= LONGEST_LABEL


def _is_literal(text: str) -> bool:
    """Whether *text* is an address of the family that it says it is of."""
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
