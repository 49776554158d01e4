"""accept: relay control and recipient verification.

Any client may send to recipients in the configured domains. A map
(:mod:`~smtpd_fork.filters.maps`) lists the recipients that exist and the aliases of other
addresses. Clients in ``relay_from`` and authenticated clients may send to any recipient.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from aiosmtpd.smtp import MISSING, Envelope
from aiosmtpd.smtp import Session as AnySession

from smtpd_fork.filters.actions import OK
from smtpd_fork.filters.base import Filter
from smtpd_fork.filters.list_setting import ListSetting
from smtpd_fork.filters.maps import RecipientMap
from smtpd_fork.filters.rule_file import RuleFile
from smtpd_fork.filters.rules import BROKEN, Rules
from smtpd_fork.gate import ClientLine, client_reporter
from smtpd_fork.gate.networks import Network, NetworkTable, number_of
from smtpd_fork.message.domains import Domains, domain_pattern
from smtpd_fork.peer_address import host_of
from smtpd_fork.sanitizer import printable
from smtpd_fork.setting_types import FilePath, SettingError, ValueOrFile

if TYPE_CHECKING:
    from smtpd_fork.filters.expansion import Expansion

__all__ = ["Accept"]

log = logging.getLogger("smtpd_fork.accept")

REDIRECTED = "250 2.1.5 OK"

_HAS_ALIASES = "has_aliases"
"""Attribute of an envelope in which an alias has added recipients."""

LONGEST_SHOWN = 100
"""Maximum characters of an address in the log."""


class _Loaded(NamedTuple):
    """The content of the files, with their signatures at the time of reading."""

    rules: Rules
    relay_from: NetworkTable[bool]
    signatures: dict[str, tuple[int, ...]]

    def changes_since(self, before: _Loaded) -> str:
        """Return a log text: the files that have changed, and the old and new numbers of rules."""
        changed = [n for n, each in self.signatures.items() if before.signatures.get(n) != each]
        sizes = zip(before._sizes(), self._sizes(), strict=True)
        numbers = [f"{old} -> {new} {what}" for (_, old), (what, new) in sizes if old != new]
        text = f"{', '.join(changed)} read again"
        return f"{text} ({', '.join(numbers)})" if numbers else text

    def __str__(self) -> str:
        return " ".join(f"{what}={number}" for what, number in self._sizes())

    def _sizes(self) -> list[tuple[str, int]]:
        domains, recipients = self.rules.domains, self.rules.recipients
        rules = 0 if recipients is None else len(recipients)
        sizes = {"domains": len(domains), "rules": rules, "networks": len(self.relay_from)}
        return list(sizes.items())


class Accept(Filter):
    """Refuses unknown recipients, and refuses to relay for clients that may not.

    :param domains: domains whose mail is accepted: ``example.com``, ``*.example.com`` for all its
        subdomains, ``[192.0.2.1]`` for an address literal, or a file with one domain per line; a
        value with a slash is a file
    :param recipients: a file of rules that accept a recipient, refuse it, or replace it by other
        addresses; default: all recipients of the domains are accepted
    :param relay_from: networks whose clients may send to any recipient, or a file of them
    :param relay_authenticated: whether authenticated clients may send to any recipient
    """

    controls_relaying = True
    redirects = True
    gives_marks = False

    def __init__(
        self,
        domains: Sequence[ValueOrFile],
        *,
        recipients: FilePath | None = None,
        relay_from: Sequence[ValueOrFile] = (),
        relay_authenticated: bool = True,
    ) -> None:
        self._domains = ListSetting("domains", domains, domain_pattern)
        self._relay_from = ListSetting("relay_from", relay_from, Network.parse)
        if not self._domains:
            raise SettingError("domains", list(domains), "at least one domain is required")
        self._recipients = None if recipients is None else RuleFile(recipients)
        self._relay_authenticated = relay_authenticated
        self._loaded: _Loaded | None = None
        self._reporter = client_reporter()

    @property
    def named_domains(self) -> Sequence[str]:
        """The single domains in the setting itself: neither ``*.`` patterns nor those of files."""
        return [domain for domain, below in self._domains.values if not below]

    # -- files ---------------------------------------------------------------------------------

    def check(self) -> None:
        """Check that the files can be read and have no errors.

        :raises HandlerError: a file cannot be read, or has an error
        """
        self._read()

    def prepare(self) -> None:
        """Read the files, unless they have been read before.

        :raises HandlerError: a file cannot be read, or has an error
        """
        if self._loaded is None:
            self._loaded = self._read()
            log.info("accept: %s", self._loaded)

    def on_reload(self) -> Callable[[], str] | None:
        """Read the files again if one of them has changed; see the base class.

        :raises HandlerError: a file cannot be read, or has an error
        """
        before = self._loaded
        if before is None or before.signatures == self._signatures():
            return None
        return partial(self._use, before, self._read())

    def _use(self, before: _Loaded, now: _Loaded) -> str:
        """Apply the new content, to open sessions as well; return the log line."""
        self._loaded = now
        return now.changes_since(before)

    def _files(self) -> list[RuleFile]:
        maps = [] if self._recipients is None else [self._recipients]
        return [*self._domains.files, *self._relay_from.files, *maps]

    def _signatures(self) -> dict[str, tuple[int, ...]]:
        return {file.name: file.signature for file in self._files()}

    def _read(self) -> _Loaded:
        # Taken before reading, so that the next reload reads a file that changes meanwhile.
        signatures = self._signatures()
        recipients = None if self._recipients is None else RecipientMap.read(self._recipients)
        rules = Rules(Domains(self._domains.read()), recipients)
        networks = NetworkTable((network, True) for network in self._relay_from.read())
        for line in rules.warnings():
            log.warning("%s: %s", self._recipients.name if self._recipients else "", line)
        return _Loaded(rules, networks, signatures)

    # -- sessions ------------------------------------------------------------------------------

    async def handle_RCPT(
        self,
        server: Any,
        session: AnySession,
        envelope: Envelope,
        address: str,
        options: list[str],
    ) -> Any:
        """Refuse a recipient, replace it by other addresses, or leave it to the next handler."""
        if self._loaded is None:
            self.prepare()  # aiosmtpd does not call it
        assert self._loaded is not None
        rules, relay_from, _ = self._loaded
        client = number_of(host_of(session.peer) or "")
        trusted = self._relay_authenticated and session.authenticated
        may_relay = bool(trusted or relay_from.find(client))
        verdict = rules.judge(address, client, may_relay=may_relay)
        if not isinstance(verdict, str):
            return self._redirect(verdict, session, envelope, address, options)
        if verdict == OK:
            return REDIRECTED if _is_added_by_alias(envelope, address) else MISSING
        return verdict

    def _redirect(
        self,
        expansion: Expansion,
        session: AnySession,
        envelope: Envelope,
        address: str,
        options: list[str],
    ) -> str:
        """Replace a recipient by the addresses of its rules; return the reply."""
        if expansion.fault:
            self._report(session, f"<{printable(address, LONGEST_SHOWN)}>: {expansion.fault}")
        if expansion.refused or not expansion.addresses:
            return expansion.refused or BROKEN
        known = set(envelope.rcpt_tos)
        envelope.rcpt_tos.extend(each for each in expansion.addresses if each not in known)
        envelope.rcpt_options.extend(options)
        setattr(envelope, _HAS_ALIASES, True)
        return REDIRECTED

    def _report(self, session: AnySession, reason: str) -> None:
        what, of = "alias not resolved", getattr(session, "id", "")
        line = ClientLine.of(log, logging.ERROR, session.peer, what, reason, session=of)
        self._reporter.note(line)

    async def close(self) -> None:
        """Write the pending log lines."""
        self._reporter.close()

    def __repr__(self) -> str:
        return " ".join(["<Accept", *(file.name for file in self._files())]) + ">"


def _is_added_by_alias(envelope: Envelope, address: str) -> bool:
    """Return whether an alias has already added a recipient: it gets the message only once."""
    return getattr(envelope, _HAS_ALIASES, False) and address in envelope.rcpt_tos
