"""Describe our client to the next hop: XCLIENT and XFORWARD (Postfix's READMEs of these names).

After XCLIENT the hop applies its access rules to the client; XFORWARD is only for its log. The
commands contain only attributes that the hop has offered.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from smtpd_fork.dialogue.client_attributes import HOST_NAME, LONGEST_VALUE, UNAVAILABLE, to_address
from smtpd_fork.dialogue.xtext import to_xtext
from smtpd_fork.gate.networks import number_of
from smtpd_fork.peer_address import host_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smtpd_fork.message import Mail, MailClient
    from smtpd_fork.peer_address import Peer

__all__ = ["ehlo_name", "xclient_command", "xforward_commands"]

_WORD = re.compile(r"[!-~]{1,255}")

_FIRST = ("NAME", "ADDR", "PORT")
"""Attributes of the first XFORWARD; two commands, so that each usually has less than 512 octets."""


def xclient_command(client: MailClient, offered: str) -> bytes:
    """Return the command XCLIENT for *client*.

    :param offered: names of attributes that the hop offers, separated by spaces
    """
    names_host = client.name is not None and HOST_NAME.fullmatch(client.name)
    values = {
        "NAME": client.name if names_host else None,
        **_of_peer(client),
        "LOGIN": client.user,
        "DESTADDR": _address(client.local),
        "DESTPORT": _port(client.local),
    }
    return _command("XCLIENT", values, offered)


def xforward_commands(mail: Mail, offered: str) -> list[bytes]:
    """Return the commands XFORWARD that describe the origin of a message.

    The origin is the XFORWARD of a trusted host, or otherwise our client.
    """
    client = mail.client
    values: dict[str, str | None] = dict(mail.xforward)
    if not values:
        is_local = host_of(client.peer) is None
        values = {
            "NAME": client.name,
            **_of_peer(client),
            "IDENT": mail.id,
            "SOURCE": "LOCAL" if is_local else "REMOTE",
        }
    elif address := values.get("ADDR"):
        values["ADDR"] = to_address(address)
    first = {name: values.get(name) for name in _FIRST}
    second = {name: values.get(name) for name in ("PROTO", "HELO", "IDENT", "SOURCE")}
    both = (_command("XFORWARD", each, offered) for each in (first, second))
    return [command for command in both if b"=" in command]


def ehlo_name(client: MailClient, own: str) -> str:
    """Return the argument of EHLO for *client*: its own argument, or its address literal.

    :param own: the name of this server, for a client without both
    """
    if _WORD.fullmatch(client.helo):
        return client.helo
    host = host_of(client.peer)
    if host is None:
        return own
    return f"[IPv6:{host}]" if ":" in host else f"[{host}]"


def _of_peer(client: MailClient) -> dict[str, str | None]:
    return {
        "ADDR": _address(client.peer),
        "PORT": _port(client.peer),
        "PROTO": "SMTP" if client.protocol == "SMTP" else "ESMTP",
        "HELO": client.helo or None,
    }


def _address(peer: Peer) -> str | None:
    """Return an address in the syntax of XCLIENT; None for a unix socket."""
    host = host_of(peer)
    return None if host is None or number_of(host) is None else to_address(host)


def _port(peer: Peer) -> str | None:
    return str(peer[1]) if isinstance(peer, tuple) and peer[1] else None


def _command(name: str, values: Mapping[str, str | None], offered: str) -> bytes:
    known = offered.split()
    words = [name, *(f"{each}={_word(value)}" for each, value in values.items() if each in known)]
    return f"{' '.join(words)}\r\n".encode("ascii")


def _word(value: str | None) -> str:
    word = to_xtext(value) if value else ""
    return word if 0 < len(word) <= LONGEST_VALUE else UNAVAILABLE
