"""Rules: decide which recipients are accepted from which clients, without I/O.

A recipient outside of the domains is never accepted from a client that is neither in relay-from nor
authenticated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smtpd_fork.filters.actions import OK, is_reply
from smtpd_fork.filters.expansion import Expansion, expand
from smtpd_fork.filters.maps import POSTMASTER, RecipientMap
from smtpd_fork.message.mailbox import Mailbox, mailbox_of

if TYPE_CHECKING:
    from smtpd_fork.message.domains import Domains

__all__ = ["Rules"]

MALFORMED = "553 5.1.3 The address has no local part"
RELAYING_DENIED = "550 5.7.1 Relaying denied: this server does not accept mail for that domain"
SOURCE_ROUTE = "550 5.7.1 Relaying denied: an address with %, ! or a second @ is a route"
UNKNOWN = "550 5.1.1 No such mailbox"
BROKEN = "451 4.3.5 The alias cannot be resolved, try again later"

_ROUTES = ("%", "!", "@")
"""Characters in a local part that older servers take for a route to another destination:
``user%example.net@example.com``, ``example.net!user@example.com``."""


@dataclass(frozen=True)
class Rules:
    """Decides about recipients.

    :ivar domains: the domains whose mail is accepted
    :ivar recipients: the map; None: all recipients of the domains are accepted
    """

    domains: Domains
    recipients: RecipientMap | None = field(default=None, repr=False)

    def judge(self, address: str, client: int | None, *, may_relay: bool) -> str | Expansion:
        """Return the decision about a recipient.

        :param client: the client's address as a number; None if it has none
        :param may_relay: whether the client may send to recipients outside of the domains
        :returns: OK, a reply that refuses the recipient, or the addresses that replace it
        """
        mailbox = mailbox_of(address)
        if not mailbox.local:
            return MALFORMED
        if not may_relay and not self._is_ours(mailbox):
            return RELAYING_DENIED
        exact = None if self.recipients is None else self.recipients.exact(mailbox)
        if exact is None and not may_relay and any(each in mailbox.local for each in _ROUTES):
            return SOURCE_ROUTE
        if self.recipients is None:
            return OK
        action = self._action(self.recipients, mailbox, exact, client)
        if action == OK or is_reply(action):
            return action
        return expand(self.recipients, address, action)

    def warnings(self) -> Iterator[str]:
        """Yield warnings about rules that are valid, but probably a mistake."""
        rules = self.recipients
        if rules is None:
            return
        others = sorted(each for each in rules.accepting if each not in self.domains)
        if others:
            yield (
                f"rules for {_first_of(others)} (not in domains) only concern clients that may "
                "relay"
            )
        if rules.any_domain:
            return
        if open_domains := sorted(self.domains.names - rules.accepting):
            yield (
                f"every recipient of {_first_of(open_domains)} is accepted: "
                "no rule accepts one of its addresses"
            )

    def _is_ours(self, mailbox: Mailbox) -> bool:
        """Return whether a mailbox is in the domains; so is a bare postmaster (RFC 5321 4.5.1)."""
        if not mailbox.domain:
            return mailbox.key == POSTMASTER
        return mailbox.domain in self.domains

    def _action(
        self, rules: RecipientMap, mailbox: Mailbox, exact: str | None, client: int | None
    ) -> str:
        """Return the action for a recipient, by the rules for clients and for addresses."""
        of_client = rules.of_client(client)
        if of_client is not None and is_reply(of_client):
            return of_client
        action = exact
        if action is None and mailbox.local == POSTMASTER:
            return OK  # a pattern or the rule of a domain cannot refuse it (RFC 5321 4.5.1)
        action = action or rules.find(mailbox)
        if action is None:
            action = UNKNOWN if self._is_unknown(rules, mailbox) else OK
        return OK if of_client == OK and is_reply(action) else action

    def _is_unknown(self, rules: RecipientMap, mailbox: Mailbox) -> bool:
        return mailbox.domain in self.domains and rules.knows_all_of(mailbox.domain)


def _first_of(names: Sequence[str]) -> str:
    """Return the first of several names, with the number of the others."""
    more = len(names) - 1
    return f"{names[0]} and {more} more" if more else names[0]
