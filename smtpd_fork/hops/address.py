"""Parse addresses of a next hop, in the syntax of handlers' settings.

::

    HOST[:PORT]       mx.internal:25   192.0.2.1   [2001:db8::1]:24
    unix:PATH         unix:/run/dovecot/lmtp
    mx:DOMAIN[:PORT]  mx:example.com: the mail servers of a domain in the DNS

Several addresses are tried in order; one string may contain several, separated by spaces.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from smtpd_fork.listeners.address import ANY, parse_address
from smtpd_fork.sanitizer import HIDDEN
from smtpd_fork.setting_types import SettingError

__all__ = ["SMTP_PORT", "HopAddress", "parse_hop_address", "parse_hop_addresses"]

SMTP_PORT = 25

_DOMAIN = re.compile(r"mx:([A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,253}[A-Za-z0-9_])?)(:[0-9]+)?")


@dataclass(frozen=True, slots=True)
class HopAddress:
    """An address of a next hop.

    :ivar host: a host name, an IP address, or the domain of ``mx:``; empty for a unix socket
    :ivar port: the port; 0 for a unix socket
    :ivar path: the path of a unix socket, or an empty string
    :ivar mx: whether *host* is a domain whose mail servers are looked up
    """

    host: str = ""
    port: int = 0
    path: str = ""
    mx: bool = False

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mx:' if self.mx else ''}{host}:{self.port}"


def parse_hop_addresses(
    texts: str | list[str], *, default_port: int | None
) -> tuple[HopAddress, ...]:
    """Return the addresses in *texts*, in order.

    :param default_port: the port of addresses without one; None: a port is required
    :raises SettingError: an address is not valid, or there is none
    """
    words = [
        word for text in ([texts] if isinstance(texts, str) else texts) for word in text.split()
    ]
    if not words:
        raise SettingError("address", "", "write HOST:PORT, unix:PATH or mx:DOMAIN")
    return tuple(parse_hop_address(word, default_port=default_port) for word in words)


def parse_hop_address(text: str, *, default_port: int | None) -> HopAddress:
    """Return the address in *text*; a relative path is made absolute.

    :param default_port: the port of an address without one; None: a port is required
    :raises SettingError: *text* is not a valid address
    """
    if "{" in text:
        raise SettingError("address", text, "placeholders such as {user} are not possible here")
    if "@" in text and "/" not in text:
        raise SettingError("address", HIDDEN, "write user and password as separate keys")
    if text.startswith("mx:"):
        return _domain(text, default_port)
    try:
        address = parse_address(text)
    except SettingError as error:
        raise SettingError("address", text, error.reason) from None
    if address.path is not None:
        return HopAddress(path=str(address.path))
    if address.host == ANY or address.scheme != "smtp" or text.startswith("smtp:"):
        raise SettingError("address", text, "write HOST:PORT, unix:PATH or mx:DOMAIN")
    port = default_port if address.port is None else address.port
    if not port:
        raise SettingError("address", text, "a port is required, as in HOST:24, or write unix:PATH")
    return HopAddress(address.host, port)


def _domain(text: str, default_port: int | None) -> HopAddress:
    match = _DOMAIN.fullmatch(text)
    if match is None or default_port is None:
        reason = "not possible for LMTP" if match else "write mx:DOMAIN, as in mx:example.com"
        raise SettingError("address", text, reason)
    port = int(match[2][1:]) if match[2] else default_port
    if not 0 < port < 1 << 16:
        raise SettingError("address", text, "ports go from 1 to 65535")
    return HopAddress(match[1].lower(), port, mx=True)
