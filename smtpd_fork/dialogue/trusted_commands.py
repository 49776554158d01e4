"""XCLIENT and XFORWARD: a trusted host names the client for which it acts.

XCLIENT (Postfix's XCLIENT_README) changes the client of the session: the gate evaluates the new
client, and the session begins again with the greeting. XFORWARD (XFORWARD_README) is for the log
and for next hops, has no other effect, and applies to one transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_fork.dialogue import replies
from smtpd_fork.dialogue.client_attributes import XCLIENT, XFORWARD, Attributes, parse_attributes
from smtpd_fork.dialogue.waiting import Run

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from smtpd_fork.dialogue.dialogue import Dialogue
    from smtpd_fork.dialogue.waiting import Result
    from smtpd_fork.gate import TrustedHosts
    from smtpd_fork.peer_address import Peer

__all__ = ["NAMES", "offers", "parse", "trusted_commands", "xclient", "xforward"]

NAMES: Mapping[str, dict[str, Any]] = {"XCLIENT": XCLIENT, "XFORWARD": XFORWARD}


def trusted_commands(trusted: Mapping[str, TrustedHosts], peer: Peer) -> frozenset[str]:
    """Return which of these commands a client may send."""
    return frozenset(name for name, hosts in trusted.items() if peer in hosts)


def offers(dialogue: Dialogue) -> list[str]:
    """Return the lines about them in EHLO's reply to this client."""
    return [f"{name} {' '.join(NAMES[name])}" for name in sorted(dialogue.may_send)]


def parse(name: str, dialogue: Dialogue, argument: str | None) -> tuple[Attributes] | bytes:
    """Return the attributes in the argument, or the reply if they are not accepted."""
    if name not in dialogue.may_send:
        return dialogue.encode(replies.NOT_TRUSTED)
    if argument is None:
        return dialogue.encode(replies.syntax(f"{name} attribute=value..."))
    try:
        return (parse_attributes(argument, NAMES[name]),)
    except ValueError as error:
        return dialogue.encode((501, "5.5.4", str(error)))


def xclient(_: Dialogue, attributes: Attributes) -> Result:
    """Change the client of the session."""
    return Run("change_client", (attributes,))


def xforward(dialogue: Dialogue, attributes: Attributes) -> Result:
    """Store the original client of the next message."""
    envelope = dialogue.envelope
    known: dict[str, str] = getattr(envelope, "xforward", None) or {}
    new = {name: value for name, value in attributes.items() if value is not None}
    envelope.xforward = {n: v for n, v in known.items() if n not in attributes} | new
    return dialogue.encode(replies.OK)
