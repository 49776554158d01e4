"""Mailbox: an address in the form in which addresses are compared.

Two texts may name one mailbox. Letters are compared in lower case, in local parts as well: RFC 5321
2.4 lets the host of a mailbox decide, and hardly any tells ``Bob`` from ``bob``. Quotes that a
local part has or has not (4.1.2), the dot at the end of a domain, and the two forms of an
internationalized label (RFC 5890 2.3.2.1) make no difference.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

__all__ = ["DELIMITER", "Mailbox", "domain_key", "mailbox_of"]

DELIMITER = "+"
"""What separates a user from an extension: ``user+extension@example.com``."""

_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


class Mailbox(NamedTuple):
    """An address, to be compared.

    :ivar key: the address that rules are looked up by
    :ivar local: its local part, in lower case and without quotes
    :ivar domain: its domain, in lower case and ASCII; empty if the address has none
    """

    key: str
    local: str
    domain: str

    @property
    def user(self) -> str:
        """The local part without its extension; all of it if it has none."""
        return self.local.partition(DELIMITER)[0] or self.local


def mailbox_of(address: str) -> Mailbox:
    """Return an address as it is compared; any text has such a form."""
    if address.isascii() and address[-1:] != "." and '"' not in address:
        key = address.lower()
        local, at, domain = key.rpartition("@")
        return Mailbox(key, local if at else key, domain if at else "")
    local, at, domain = address.rpartition("@")
    if not at:
        local, domain = address, ""
    if local[:1] == '"' == local[-1:] and len(local) > 1:
        local = _ESCAPED.sub(r"\1", local[1:-1])
    local, domain = _folded(local), domain_key(domain)
    return Mailbox(f"{local}{at}{domain}", local, domain)


def domain_key(domain: str) -> str:
    """Return a domain, or an address literal, as it is compared."""
    if not domain.isascii():
        domain = ".".join(map(_ascii_label, domain.split(".")))
    return domain.lower().removesuffix(".")


def _folded(text: str) -> str:
    text = text.lower()
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _ascii_label(label: str) -> str:
    """Return a label as the DNS has it.

    One that is ASCII only in lower case (of KELVIN SIGN, for instance) is not taken for the other.
    """
    if label.isascii():
        return label
    return "xn--" + _folded(label).encode("punycode").decode("ascii")
