"""Expansion: the addresses that a recipient becomes by the rules of a map.

The addresses of a rule are looked up in turn, until there is none that another rule replaces. An
address that its own rule names is final: ``bob@example.com bob@example.com, archive@example.com``
keeps a copy. An address is looked up once, so there is no end to fear but that of a large alias.

The extension of a recipient goes on to the addresses of the rule for the address without it, as in
Postfix (propagate_unmatched_extensions): ``info+news`` becomes ``bob+news``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from smtpd_fork.filters.actions import MOST_ADDRESSES, OK, addresses_of, is_reply
from smtpd_fork.message.mailbox import DELIMITER, Mailbox, mailbox_of

if TYPE_CHECKING:
    from smtpd_fork.filters.maps import RecipientMap

__all__ = ["Expansion", "expand"]


class Expansion(NamedTuple):
    """What a recipient has become.

    :ivar addresses: in the order of the rules, each once
    :ivar refused: the reply of a rule that refuses one of them; else empty
    :ivar fault: why a part of the rules was left out; else empty
    """

    addresses: tuple[str, ...] = ()
    refused: str = ""
    fault: str = ""


class _Step(NamedTuple):
    """An address to look up.

    :ivar mailbox: the address, as it is compared
    :ivar behind: the step of the address whose rule named it; None for the recipient
    """

    address: str
    mailbox: Mailbox
    behind: _Step | None

    def is_behind(self, mailbox: Mailbox) -> bool:
        """Whether *mailbox* was looked up on the way to this step."""
        step: _Step | None = self
        while step is not None:
            if step.mailbox == mailbox:
                return True
            step = step.behind
        return False


def expand(rules: RecipientMap, address: str, action: str) -> Expansion:
    """Return the addresses that *address* becomes by *action*, the addresses of a rule."""
    root = _Step(address, mailbox_of(address), None)
    found: dict[Mailbox, str] = {}
    seen, fault = {root.mailbox}, ""
    steps = _steps(rules, action, root)
    while steps:
        step = steps.pop()
        mailbox, behind = step.mailbox, step.behind
        assert behind is not None
        if _is_final(rules, mailbox, behind.mailbox):
            found.setdefault(mailbox, step.address)
            continue
        if mailbox in seen:
            if behind.is_behind(mailbox):
                fault = f"<{step.address}> leads to itself"
            continue
        if len(seen) > MOST_ADDRESSES:
            return Expansion(fault=f"it leads to more than {MOST_ADDRESSES} addresses")
        seen.add(mailbox)
        next_action = rules.find(mailbox) or OK
        if is_reply(next_action):
            return Expansion(refused=next_action)
        if next_action == OK:
            found.setdefault(mailbox, step.address)
        else:
            steps += _steps(rules, next_action, step)
    return Expansion(tuple(found.values()), fault=fault)


def _is_final(rules: RecipientMap, mailbox: Mailbox, behind: Mailbox) -> bool:
    """Whether a rule names its own address, perhaps with an extension that has no rule."""
    if mailbox == behind:
        return True
    same = (mailbox.user, mailbox.domain) == (behind.user, behind.domain)
    return same and rules.drops_extension(mailbox)


def _steps(rules: RecipientMap, action: str, behind: _Step) -> list[_Step]:
    """Return a step for each address of a rule, the first one last."""
    local = behind.address.rpartition("@")[0] or behind.address
    extension = ""
    if local[0] != '"' and rules.drops_extension(behind.mailbox):
        extension = local[local.index(DELIMITER) :]
    addresses = addresses_of(action, local, extension)
    return [_Step(each, mailbox_of(each), behind) for each in reversed(addresses)]
