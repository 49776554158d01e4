"""Domains: a set of domains and parent domains from the configuration."""

from __future__ import annotations

from collections.abc import Iterable

from smtpd_fork.dialogue.path import parse_path
from smtpd_fork.message.mailbox import domain_key

__all__ = ["Domains", "domain_pattern"]

SUBDOMAINS = "*."


class Domains:
    """A set of domains, some of which stand for all domains below them.

    :param patterns: results of :func:`domain_pattern`
    """

    def __init__(self, patterns: Iterable[tuple[str, bool]]) -> None:
        self._exact: set[str] = set()
        self._parents: set[str] = set()
        for domain, below in patterns:
            (self._parents if below else self._exact).add(domain)

    def __contains__(self, domain: str) -> bool:
        """Return whether the set contains *domain*.

        :param domain: a result of :func:`~smtpd_fork.message.mailbox.domain_key`
        """
        return domain in self._exact or (bool(self._parents) and self._is_below(domain))

    def _is_below(self, domain: str) -> bool:
        _, dot, parent = domain.partition(".")
        while dot:
            if parent in self._parents:
                return True
            _, dot, parent = parent.partition(".")
        return False

    def covers(self, domain: str, *, below: bool) -> bool:
        """Return whether the set contains a domain, or with *below* all domains below it."""
        if below:
            return domain in self._parents or self._is_below(domain)
        return domain in self

    def __len__(self) -> int:
        return len(self._exact) + len(self._parents)

    @property
    def names(self) -> frozenset[str]:
        """The domains without those that stand for all domains below them."""
        return frozenset(self._exact)


def domain_pattern(text: str) -> tuple[str, bool]:
    """Return a domain in the form for comparisons, and whether it stands for the domains below it.

    ``example.com`` is one domain; ``*.example.com`` is all domains below it, but not itself.

    :raises ValueError: *text* is not a domain
    """
    below = text.startswith(SUBDOMAINS)
    domain = text.removeprefix(SUBDOMAINS)
    if parse_path(f"<x@{domain}>") != (f"x@{domain}", ""):
        hint = f"; write *{text} for the domains below it" if text.startswith(".") else ""
        raise ValueError(f"not a domain, as in example.com or *.example.com{hint}")
    return domain_key(domain), below
