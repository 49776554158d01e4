r"""Maps: rules for recipients, and for the clients that send to them.

A rule is a line: a left-hand side, blanks, and an action (:mod:`~smtpd_fork.filters.actions`). A
line that begins with a blank continues the previous line; a line that begins with ``#`` is a
comment::

    bob@example.com                          a mailbox; the same as "bob@example.com OK"
    info@example.com     bob@example.com, carol@example.org
    /^(spam|junk)[0-9]*@/i   REJECT No such mailbox
    @example.net         @example.com        a whole domain: the same users in another domain
    192.0.2.0/24         REJECT Not from this network

If several rules match a recipient, the first of this list is used:

1. the whole address;
2. the address without its extension: ``bob@example.com`` for ``bob+news@example.com``;
3. a regular expression, in the order of the file;
4. the domain.

Postfix with a table of addresses before a table of patterns has the same order (virtual(5)), except
that it searches patterns before it drops an extension: a pattern for a whole domain then has
precedence over the rule for a mailbox.

A pattern is searched for in the address in lower case and without quotes. The time of a search is
limited only by the length of an address, that is, of a command line: the administrator writes the
patterns, and is trusted.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

from smtpd_fork.dialogue.path import parse_path
from smtpd_fork.filters.actions import OK, is_reply, parse_action
from smtpd_fork.gate.networks import Network, NetworkTable
from smtpd_fork.message.domains import SUBDOMAINS, domain_pattern
from smtpd_fork.message.mailbox import DELIMITER, Mailbox, domain_key, mailbox_of

if TYPE_CHECKING:
    from smtpd_fork.filters.rule_file import RuleFile

__all__ = ["POSTMASTER", "RecipientMap"]

_ATOMS = r"[A-Za-z0-9_=+-]++(?:\.[A-Za-z0-9_=+-]++)*+"
_DOMAIN = r"(?=[A-Za-z0-9.-]{1,63}+(?![A-Za-z0-9.-]))[A-Za-z0-9]++(?:[.-][A-Za-z0-9]++)*+"
_FREQUENT = re.compile(
    rf"({_ATOMS}@({_DOMAIN}))(?:[ \t]++(?:[Oo][Kk]|({_ATOMS}@{_DOMAIN})))?+[ \t\r]*+"
).fullmatch
"""Match the most frequent rules: an address, and OK or one other address. A fast path: the slow
path reads the same from such a line."""

_PATTERN = re.compile(r"/((?:[^/\\]|\\.)*)/(\w*)(?:[ \t]+|$)")
_LEFT = re.compile(r'("(?:[^"\\]|\\.)*"[^ \t]*|[^ \t]+)(?:[ \t]+|$)')
POSTMASTER = "postmaster"

_NOT_LEFT = "the left side has to be an address, @domain, /regular expression/ or a network"

Key = TypeVar("Key")


class RecipientMap:
    """The rules of a file, ready for look-ups.

    :ivar accepting: domains in which a rule accepts a recipient: all others in them are unknown
    :ivar any_domain: whether a pattern accepts recipients, which may be in any domain
    """

    def __init__(self) -> None:
        self._addresses: dict[str, str] = {}
        self._domains: dict[str, str] = {}
        self._patterns: dict[re.Pattern[str], str] = {}
        self._networks: dict[Network, str] = {}
        self._of_clients: NetworkTable[str] | None = None
        self._last_domain = ""
        self.accepting: set[str] = set()
        self.any_domain = False

    @classmethod
    def read(cls, file: RuleFile) -> RecipientMap:
        """Read a file of rules.

        :raises HandlerError: the file cannot be read, or has a line that is not a rule
        """
        read = cls()
        for number, rule in file.rules():
            try:
                match = _FREQUENT(rule)
                if match is None:
                    read._add(rule.strip(" \t\r"))
                else:
                    read._add_address(match[1].lower(), match[3] or OK, match[2])
            except ValueError as error:
                raise file.error(number, rule.rstrip(), error) from None
        if read._networks:
            read._of_clients = NetworkTable(read._networks.items())
        return read

    def __len__(self) -> int:
        others = len(self._domains) + len(self._patterns) + len(self._networks)
        return len(self._addresses) + others

    # -- look-up -------------------------------------------------------------------------------

    def of_client(self, number: int | None) -> str | None:
        """Return the action for a client: that of the smallest network that contains it."""
        return None if self._of_clients is None else self._of_clients.find(number)

    def find(self, mailbox: Mailbox) -> str | None:
        """Return the action for a recipient; None if there is none."""
        key = mailbox.key
        return (
            self._addresses.get(key)
            or self._of_user(mailbox)
            or self._matching(key)
            or self._domains.get(mailbox.domain)
        )

    def exact(self, mailbox: Mailbox) -> str | None:
        """Return the action of the rule for exactly this address; None if there is no such rule."""
        return self._addresses.get(mailbox.key)

    def drops_extension(self, mailbox: Mailbox) -> bool:
        """Return whether the rule of a recipient is that of the address without the extension."""
        return self.exact(mailbox) is None and self._of_user(mailbox) is not None

    def knows_all_of(self, domain: str) -> bool:
        """Return whether a recipient in *domain* without a rule is unknown."""
        return self.any_domain or domain in self.accepting

    def _of_user(self, mailbox: Mailbox) -> str | None:
        if DELIMITER not in mailbox.local:
            return None
        return self._addresses.get(f"{mailbox.user}@{mailbox.domain}")

    def _matching(self, key: str) -> str | None:
        return next((act for pattern, act in self._patterns.items() if pattern.search(key)), None)

    # -- reading -------------------------------------------------------------------------------

    def _add_address(self, key: str, action: str, domain: str) -> None:
        known = self._addresses.setdefault(key, action)
        if known is not action and known != action:
            raise ValueError(_contradicts(key, known))
        # Compared as written, to save the conversion: most rules have the domain of the previous.
        if domain != self._last_domain and not is_reply(action):
            self._last_domain = domain
            self.accepting.add(domain_key(domain))

    def _add(self, rule: str) -> None:
        if not rule:
            return
        if rule[0] == "/":
            self._add_pattern(rule)
            return
        match = _LEFT.match(rule)
        if match is None:
            raise ValueError(_NOT_LEFT)
        left, right = match[1], rule[match.end() :]
        if left.startswith("@"):
            self._add_domain(left[1:], parse_action(right))
        elif left.lower() == POSTMASTER:
            _put(self._addresses, POSTMASTER, parse_action(right))
        elif "@" in left:
            if parse_path(f"<{left}>") != (left, ""):
                raise ValueError(_NOT_LEFT)
            mailbox = mailbox_of(left)
            self._add_address(mailbox.key, parse_action(right), mailbox.domain)
        else:
            self._add_network(left, right)

    def _add_domain(self, text: str, action: str) -> None:
        domain, below = domain_pattern(text)
        if below:
            raise ValueError(f"@{SUBDOMAINS} is not possible here: one rule for each domain")
        _put(self._domains, domain, action)
        if not is_reply(action):
            self.accepting.add(domain)

    def _add_pattern(self, rule: str) -> None:
        match = _PATTERN.match(rule)
        if match is None:
            raise ValueError("no second / ends the regular expression")
        if match[2] not in {"", "i"}:
            raise ValueError(f"flag {match[2]!r} of the regular expression: only i is known")
        try:
            pattern = re.compile(match[1], re.IGNORECASE if match[2] else 0)
        except (re.error, OverflowError, RecursionError, Warning) as error:
            raise ValueError(f"the regular expression does not compile: {error}") from None
        action = parse_action(rule[match.end() :])
        _put(self._patterns, pattern, action)
        self.any_domain = self.any_domain or not is_reply(action)

    def _add_network(self, left: str, right: str) -> None:
        try:
            network = Network.parse(left)
        except ValueError as error:
            has_digit = left[:1].isdigit() or ":" in left
            raise ValueError(error if has_digit else _NOT_LEFT) from None
        _put(self._networks, network, parse_action(right, client=True))


def _put(table: dict[Key, str], key: Key, action: str) -> None:
    known = table.setdefault(key, action)
    if known != action:
        raise ValueError(_contradicts("this", known))


def _contradicts(what: str, known: str) -> str:
    return f"another rule says that {what} is {known[:60]!r}"
