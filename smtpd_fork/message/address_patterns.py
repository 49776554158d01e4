"""AddressPatterns: a list of addresses and domains from the configuration."""

from __future__ import annotations

from collections.abc import Iterable

from smtpd_fork.message.domains import Domains, domain_pattern
from smtpd_fork.message.mailbox import mailbox_of

__all__ = ["AddressPatterns"]

NULL = "<>"
"""The pattern of the null sender."""


class AddressPatterns:
    """A list of patterns for addresses and domains.

    Addresses are compared as :mod:`smtpd_fork.message.mailbox` states.

    :param patterns: each ``a@example.com``, ``example.com`` (also ``@example.com``),
        ``*.example.com`` for all domains below it, ``<>`` for the null sender, or ``*`` for all
    :raises ValueError: a pattern has none of these forms
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(patterns)
        self._addresses: set[str] = set()
        self._all = "*" in self.patterns
        domains = []
        for pattern in self.patterns:
            if pattern == NULL:
                self._addresses.add("")
            elif "@" in pattern[1:]:
                if domain_pattern(pattern.rpartition("@")[2])[1]:
                    raise ValueError(f"{pattern!r}: the domain of an address cannot begin with *.")
                self._addresses.add(mailbox_of(pattern).key)
            elif pattern != "*":
                domains.append(domain_pattern(pattern.removeprefix("@")))
        self._domains = Domains(domains)

    def match(self, address: str) -> bool:
        """Return whether a pattern matches *address*; the null sender is "" or ``<>``."""
        if self._all:
            return True
        mailbox = mailbox_of("" if address == NULL else address)
        if mailbox.key in self._addresses:
            return True
        return bool(mailbox.domain) and mailbox.domain in self._domains

    def covers(self, other: AddressPatterns) -> bool:
        """Return whether the patterns show that this list matches every address of *other*."""
        return self._all or all(map(self._covers, other.patterns))

    def _covers(self, pattern: str) -> bool:
        if pattern == "*":
            return False
        if pattern == NULL or "@" in pattern[1:]:
            return self.match(pattern)
        domain, below = domain_pattern(pattern.removeprefix("@"))
        return self._domains.covers(domain, below=below)

    def __bool__(self) -> bool:
        return bool(self.patterns)

    def __repr__(self) -> str:
        return f"<AddressPatterns {' '.join(self.patterns)}>"
