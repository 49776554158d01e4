"""XCLIENT and XFORWARD: a host that is trusted names the client for which it speaks.

XCLIENT (Postfix's XCLIENT_README) makes the session that client's: the client is judged, and the
session begins anew with the greeting. XFORWARD (XFORWARD_README) is for the log and for next hops,
changes nothing else, and holds for one transaction.
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
    """Return which of the two commands a client may send."""
    return frozenset(name for name, hosts in trusted.items() if peer in hosts)


def offers(dialogue: Dialogue) -> list[str]:
    """Return the lines of EHLO's reply about them, for this client."""
    return [f"{name} {' '.join(NAMES[name])}" for name in sorted(dialogue.may_send)]


def parse(name: str, dialogue: Dialogue, argument: str | None) -> tuple[Attributes] | bytes:
    """Return the attributes of a client."""
    if name not in dialogue.may_send:
        return dialogue.say(replies.NOT_TRUSTED)
    if argument is None:
        return dialogue.say(replies.syntax(f"{name} attribute=value..."))
    try:
        return (parse_attributes(argument, NAMES[name]),)
    except ValueError as error:
        return dialogue.say((501, "5.5.4", str(error)))


def xclient(_: Dialogue, attributes: Attributes) -> Result:
    """Have another client take the place of this one."""
    return Run("change_client", (attributes,))


def xforward(dialogue: Dialogue, attributes: Attributes) -> Result:
    """Note where the next message came from at first."""
    envelope = dialogue.envelope
    known: dict[str, str] = getattr(envelope, "xforward", None) or {}
    new = {name: value for name, value in attributes.items() if value is not None}
    envelope.xforward = {n: v for n, v in known.items() if n not in attributes} | new
    return dialogue.say(replies.OK)
