"""Mailbox: an address in the form for comparisons.

Different texts may name the same mailbox. Addresses are compared in lower case, local parts too:
RFC 5321 2.4 leaves the case of local parts to the host of the mailbox, and hardly any host
distinguishes ``Bob`` from ``bob``. Quotes around a local part (4.1.2), a dot at the end of a
domain, and the two forms of an internationalized label (RFC 5890 2.3.2.1) make no difference.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

__all__ = ["DELIMITER", "Mailbox", "domain_key", "mailbox_of", "without_quotes"]

DELIMITER = "+"
"""The character between a user and an extension: ``user+extension@example.com``."""

_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


class Mailbox(NamedTuple):
    """An address in the form for comparisons.

    :ivar key: the address, as the key for rules
    :ivar local: the local part, in lower case and without quotes
    :ivar domain: the domain, in lower case and ASCII; empty if the address has none
    """

    key: str
    local: str
    domain: str

    @property
    def user(self) -> str:
        """The local part without its extension; the whole local part if it has none."""
        return self.local.partition(DELIMITER)[0] or self.local


def mailbox_of(address: str) -> Mailbox:
    """Return an address in the form for comparisons; any text has one."""
    if address.isascii() and address[-1:] != "." and '"' not in address:
        key = address.lower()
        local, at, domain = key.rpartition("@")
        return Mailbox(key, local if at else key, domain if at else "")
    local, at, domain = address.rpartition("@")
    if not at:
        local, domain = address, ""
    local, domain = _folded(_unquoted(local)), domain_key(domain)
    return Mailbox(f"{local}{at}{domain}", local, domain)


def without_quotes(address: str) -> str:
    """Return an address without the quotes and backslashes of its local part (RFC 5321 4.1.2)."""
    local, at, domain = address.rpartition("@")
    return f"{_unquoted(local)}{at}{domain}"


def _unquoted(local: str) -> str:
    if local[:1] == '"' == local[-1:] and len(local) > 1:
        return _ESCAPED.sub(r"\1", local[1:-1])
    return local


def domain_key(domain: str) -> str:
    """Return a domain or an address literal in the form for comparisons."""
    if not domain.isascii():
        domain = ".".join(map(_ascii_label, domain.split(".")))
    return domain.lower().removesuffix(".")


def _folded(text: str) -> str:
    text = text.lower()
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _ascii_label(label: str) -> str:
    """Return a label in the form of the DNS.

    A label with a character whose lower case is ASCII, such as KELVIN SIGN, remains different from
    the label in ASCII.
    """
    if label.isascii():
        return label
    return "xn--" + _folded(label).encode("punycode").decode("ascii")
