"""AddressPatterns: addresses and domains, as administrators list them."""

from __future__ import annotations

from collections.abc import Iterable

from smtpd_fork.message.domains import Domains, domain_pattern
from smtpd_fork.message.mailbox import mailbox_of

__all__ = ["AddressPatterns"]

NULL = "<>"
"""The null sender, in a list."""


class AddressPatterns:
    """A list of addresses and domains, compared as :mod:`smtpd_fork.message.mailbox` has it.

    :param patterns: each ``a@example.com``, ``example.com`` (also ``@example.com``),
        ``*.example.com`` for all domains below it, ``<>`` for the null sender, or ``*`` for all
    :raises ValueError: one of them is none of these
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
                    raise ValueError(f"{pattern!r}: write a domain without *.")
                self._addresses.add(mailbox_of(pattern).key)
            elif pattern != "*":
                domains.append(domain_pattern(pattern.removeprefix("@")))
        self._domains = Domains(domains)

    def match(self, address: str) -> bool:
        """Whether *address* is in the list; the null sender is empty, or ``<>``."""
        if self._all:
            return True
        mailbox = mailbox_of("" if address == NULL else address)
        if mailbox.key in self._addresses:
            return True
        return bool(mailbox.domain) and mailbox.domain in self._domains

    def covers(self, other: AddressPatterns) -> bool:
        """Whether each address of the list *other* is in this one, as far as the patterns show."""
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
