"""Expansion: replace a recipient by the addresses that the rules of a map give it.

Each address of a rule is looked up in turn, until no rule replaces any of them. An address that its
own rule contains is final, so that ``bob@example.com bob@example.com, archive@example.com`` sends a
copy to the archive. Each address is looked up only once, so the work is bounded by MOST_ADDRESSES.

If the rule is found only without the recipient's extension, the extension is appended to the
addresses of the rule, as in Postfix (propagate_unmatched_extensions): ``info+news`` becomes
``bob+news``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from smtpd_fork.filters.actions import MOST_ADDRESSES, OK, addresses_of, is_reply
from smtpd_fork.message.mailbox import DELIMITER, Mailbox, mailbox_of

if TYPE_CHECKING:
    from smtpd_fork.filters.maps import RecipientMap

__all__ = ["Expansion", "expand"]


class Expansion(NamedTuple):
    """The result of expanding a recipient.

    :ivar addresses: the addresses in the order of the rules, each once
    :ivar refused: the reply of a rule that refuses one of the addresses, or an empty string
    :ivar fault: why an address was left out, or an empty string
    """

    addresses: tuple[str, ...] = ()
    refused: str = ""
    fault: str = ""


class _Step(NamedTuple):
    """An address to look up.

    :ivar mailbox: the address in the form that is compared
    :ivar parent: the step whose rule contains the address; None for the recipient itself
    """

    address: str
    mailbox: Mailbox
    parent: _Step | None

    def comes_from(self, mailbox: Mailbox) -> bool:
        """Return whether *mailbox* is the address of this step or of one of its ancestors."""
        step: _Step | None = self
        while step is not None:
            if step.mailbox == mailbox:
                return True
            step = step.parent
        return False


def expand(rules: RecipientMap, address: str, action: str) -> Expansion:
    """Return the expansion of *address*.

    :param action: the action of its rule, which has to be a list of addresses
    """
    root = _Step(address, mailbox_of(address), None)
    found: dict[Mailbox, str] = {}
    seen, fault = {root.mailbox}, ""
    steps = _steps(rules, action, root)
    while steps:
        step = steps.pop()
        mailbox, parent = step.mailbox, step.parent
        assert parent is not None
        if _is_final(rules, mailbox, parent.mailbox):
            found.setdefault(mailbox, step.address)
            continue
        if mailbox in seen:
            if parent.comes_from(mailbox):
                fault = f"<{step.address}> is an alias of itself"
            continue
        if len(seen) > MOST_ADDRESSES:
            return Expansion(fault=f"the alias has more than {MOST_ADDRESSES} addresses")
        seen.add(mailbox)
        next_action = rules.find(mailbox) or OK
        if is_reply(next_action):
            return Expansion(refused=next_action)
        if next_action == OK:
            found.setdefault(mailbox, step.address)
        else:
            steps += _steps(rules, next_action, step)
    return Expansion(tuple(found.values()), fault=fault)


def _is_final(rules: RecipientMap, mailbox: Mailbox, parent: Mailbox) -> bool:
    """Return whether a rule contains its own address, possibly with an extension without a rule."""
    if mailbox == parent:
        return True
    same = (mailbox.user, mailbox.domain) == (parent.user, parent.domain)
    return same and rules.drops_extension(mailbox)


def _steps(rules: RecipientMap, action: str, parent: _Step) -> list[_Step]:
    """Return a step for each address of a rule, in reverse order: they are put on a stack."""
    local = parent.address.rpartition("@")[0] or parent.address
    extension = ""
    if local[0] != '"' and rules.drops_extension(parent.mailbox):
        extension = local[local.index(DELIMITER) :]
    addresses = addresses_of(action, local, extension)
    return [_Step(each, mailbox_of(each), parent) for each in reversed(addresses)]
