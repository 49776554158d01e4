"""The commands that concern the session: EHLO, NOOP, RSET, VRFY, HELP, STARTTLS, QUIT and others.

As in :mod:`~smtpd_fork.dialogue.mail`, each is a function that returns its reply, or the operation
to wait for.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import MISSING

from smtpd_fork.dialogue import replies
from smtpd_fork.dialogue.commands import State
from smtpd_fork.dialogue.dispatch import echo
from smtpd_fork.dialogue.path import parse_path
from smtpd_fork.dialogue.reply import reply_bytes
from smtpd_fork.dialogue.trusted_commands import offers
from smtpd_fork.dialogue.waiting import Ask, Run

if TYPE_CHECKING:
    from smtpd_fork.dialogue.dialogue import Dialogue
    from smtpd_fork.dialogue.replies import Text
    from smtpd_fork.dialogue.shared import Shared
from smtpd_fork.dialogue.waiting import Result

_USER = re.compile(r"[^\x00-\x1f\x7f<>@]+")
"""The argument of VRFY if it is not an address: a user name (RFC 5321 3.5.1)."""

_SMTPUTF8 = re.compile(r"[ \t]+SMTPUTF8", re.IGNORECASE | re.ASCII)
"""The parameter of VRFY (RFC 6531 3.7.4.2)."""


# -- HELO, EHLO, LHLO --------------------------------------------------------------------------


def parse_name(command: str, dialogue: Dialogue, argument: str | None) -> tuple[str] | bytes:
    """Return the name of the client, or the reply if it is missing."""
    return (argument,) if argument else dialogue.encode(replies.syntax(f"{command} hostname"))


def helo(dialogue: Dialogue, name: str) -> Result:
    """Process HELO (RFC 5321 4.1.1.1)."""
    dialogue.reset()
    dialogue.session.extended_smtp = False
    if "HELO" in dialogue.shared.hooks:
        return Ask("HELO", (name,), partial(_greeted, dialogue, name))
    return _greeted(dialogue, name, MISSING)


def _greeted(dialogue: Dialogue, name: str, status: Any) -> Result:
    if status is not MISSING:
        return reply_bytes(status)
    _introduce(dialogue, name)
    return f"250 {dialogue.shared.hostname}\r\n".encode()


def _introduce(dialogue: Dialogue, name: str) -> None:
    dialogue.session.host_name = name
    dialogue.state = State.READY


def ehlo(dialogue: Dialogue, name: str) -> Result:
    """Process EHLO, and list the extensions (RFC 5321 4.1.1.1); LHLO does the same (RFC 2033)."""
    dialogue.reset()
    dialogue.session.extended_smtp = True
    shared = dialogue.shared
    if "EHLO" in shared.hooks or shared.ehlo_hook:
        return Run("ehlo_hooks", (name, _extensions_for(dialogue)))
    _introduce(dialogue, name)
    if dialogue.may_send:
        return "\r\n".join([*_extensions_for(dialogue), "250 HELP\r\n"]).encode()
    return shared.ehlo[dialogue.tls]


def _extensions_for(dialogue: Dialogue) -> list[str]:
    more = [f"250-{line}" for line in offers(dialogue)] if dialogue.may_send else []
    return extensions(dialogue.shared, tls=dialogue.tls) + more


def extensions(shared: Shared, *, tls: bool) -> list[str]:
    """Return the lines of EHLO's reply, without the last one.

    :param tls: whether TLS is active
    """
    offered = {
        f"SIZE {shared.data_size_limit}": shared.data_size_limit,
        "8BITMIME": not shared.decode_data,
        "SMTPUTF8": shared.enable_SMTPUTF8,
        "STARTTLS": shared.tls is not None and not tls,
        f"AUTH {shared.auth_offer}": shared.auth_names and (tls or not shared.auth_require_tls),
        "PIPELINING": True,
        "CHUNKING": shared.chunking,
        "BINARYMIME": shared.binarymime and not shared.decode_data,
        "DSN": shared.dsn,
        "ENHANCEDSTATUSCODES": shared.enhanced,
        f"LIMITS RCPTMAX={shared.limits.recipients}": True,
    }
    return [f"250-{shared.hostname}", *(f"250-{name}" for name, has in offered.items() if has)]


# -- RSET, VRFY, HELP, STARTTLS, QUIT ----------------------------------------------------------


def no_argument(command: str, dialogue: Dialogue, argument: str | None) -> tuple[()] | bytes:
    """Reject an argument."""
    return dialogue.encode(replies.syntax(command)) if argument else ()


def _unless_asked(dialogue: Dialogue, hook: str, default: Text, *args: Any) -> Result:
    """Call a handler's hook; without a hook, return the reply *default*."""
    if hook in dialogue.shared.hooks:
        return Ask(hook, args, partial(answer_or, dialogue, default))
    return dialogue.encode(default)


def answer_or(dialogue: Dialogue, default: Text, status: Any) -> bytes:
    """Return the handler's reply, or *default*."""
    return dialogue.encode(default) if status is MISSING else reply_bytes(status)


def noop(dialogue: Dialogue, argument: str | None = None) -> Result:
    """Do nothing (RFC 5321 4.1.1.9)."""
    dialogue.count_noop()
    return _unless_asked(dialogue, "NOOP", replies.OK, argument)


def rset(dialogue: Dialogue) -> Result:
    """End the transaction (RFC 5321 4.1.1.5)."""
    if dialogue.state in {State.HELLO, State.READY}:
        dialogue.count_noop()  # a RSET within a transaction is not counted: address checks use it
    dialogue.reset()
    if dialogue.shared.rset_hook:
        return Run("old_rset_hook")
    return _unless_asked(dialogue, "RSET", replies.OK)


def vrfy(dialogue: Dialogue, argument: str | None) -> Result:
    """Reply 252, as the existence of users is not disclosed (RFC 5321 4.1.1.6 and 7.3)."""
    dialogue.count_noop()
    if not argument:
        return dialogue.encode(replies.syntax("VRFY <address>"))
    user = _SMTPUTF8.sub("", argument)
    parsed = parse_path(user)
    if parsed is not None and not parsed[1]:
        user = parsed[0]
    elif not _USER.fullmatch(user):
        return dialogue.encode((502, "5.1.3", f"Could not VRFY {echo(argument)}"))
    return _unless_asked(dialogue, "VRFY", replies.CANNOT_VRFY, user)


def not_implemented(dialogue: Dialogue, _: str | None) -> Result:
    """Reject a command that is not implemented: EXPN (RFC 5321 4.1.1.7), ETRN, TURN."""
    dialogue.count_noop()
    return dialogue.encode((502, "5.5.1", f"{dialogue.row.name} not implemented"))


def help_(dialogue: Dialogue, argument: str | None) -> Result:
    """List the commands, or the syntax of one (RFC 5321 4.1.1.8)."""
    dialogue.count_noop()
    if argument and argument.isalnum():
        usage = _usage(dialogue, argument.upper())
        if usage is not None:
            return dialogue.encode((250, "2.0.0", f"Syntax: {usage}"))
    known = (name for name in dialogue.shared.methods if _usage(dialogue, name) is not None)
    text = f"Supported commands: {' '.join(sorted(known))}"
    return dialogue.encode((501, "5.5.4", text) if argument else (250, "2.0.0", text))


def _usage(dialogue: Dialogue, name: str) -> str | None:
    """Return the syntax of a command; None if HELP does not list it, or it is not offered now."""
    method = getattr(dialogue.shared.cls, f"smtp_{name}", None)
    usage: str | None = getattr(method, "__smtp_syntax__", None)
    if method is None or usage is None:
        return None
    when = method.__smtp_syntax_when__
    if when and not getattr(dialogue.server, when):
        return None
    more = method.__smtp_syntax_extended__ if dialogue.session.extended_smtp else None
    return usage + (more or "")


def starttls(dialogue: Dialogue) -> Result:
    """Begin the TLS handshake (RFC 3207)."""
    if dialogue.tls:
        return dialogue.encode(replies.TLS_IS_ACTIVE)
    if dialogue.shared.tls is None:
        return dialogue.encode(replies.NO_TLS)
    refused = dialogue.host.refuse_handshake()
    if refused is not None:
        if not dialogue.count_error():
            dialogue.put(dialogue.encode((454, "4.7.0", refused)), counted=False)
        return None
    # All further bytes belong to the handshake: those in the kernel, and those received with
    # STARTTLS. Plaintext that is injected there (CVE-2011-0411) ends the handshake, whether it
    # was received in the same packet or in the next one.
    early = b"" if dialogue.framer is None else dialogue.framer.rest()
    dialogue.framer = None
    dialogue.put(dialogue.encode(replies.READY_FOR_TLS))
    dialogue.state = State.HANDSHAKE
    return Run("start_tls", (early,))


def quit_(dialogue: Dialogue) -> Result:
    """End the session (RFC 5321 4.1.1.10)."""
    if "QUIT" in dialogue.shared.hooks:
        return Ask("QUIT", (), partial(_quit, dialogue))
    return _quit(dialogue, MISSING)


def _quit(dialogue: Dialogue, status: Any) -> Result:
    dialogue.put(dialogue.shared.bye if status is MISSING else reply_bytes(status))
    dialogue.leave()
    return None


# -- other commands ----------------------------------------------------------------------------


def subclass_command(name: str, _: Dialogue, argument: str | None) -> Result:
    """Carry out a command of a user's subclass."""
    return Run("subclass_command", (name, argument))


def http(dialogue: Dialogue, _: str | None) -> Result:
    """Reply 421 to an HTTP client, and close."""
    return f"421 4.7.0 {dialogue.shared.hostname} This is not a web server\r\n".encode()


def unknown(dialogue: Dialogue, name: str) -> Result:
    """Reject an unknown command."""
    return dialogue.invalid_command((500, "5.5.1", f'Error: command "{echo(name)}" not recognized'))
