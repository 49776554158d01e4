"""Client attributes: the arguments of XCLIENT and XFORWARD (Postfix's XCLIENT_README).

An attribute is ``NAME=value``, with the value in xtext; ``[UNAVAILABLE]`` means that there is none.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, TypeAlias

from smtpd_fork.dialogue.xtext import from_xtext
from smtpd_fork.peer_address import host_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "HOST_NAME", "LONGEST_VALUE", "UNAVAILABLE", "XCLIENT", "XFORWARD", "Attributes",
    "parse_attributes", "to_address",
]  # fmt: skip

Attributes: TypeAlias = "dict[str, str | None]"
"""Values by name, in capitals; None: the value is unavailable."""

UNAVAILABLE, TEMPORARILY = "[UNAVAILABLE]", "[TEMPUNAVAIL]"

LONGEST_VALUE = 255
"""Octets of an encoded value; Postfix has the same limit."""

HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
_PORT = re.compile(r"[0-9]{1,5}")
_IPV6 = "IPV6:"


def to_address(host: str) -> str:
    """Return an address as the value of an attribute: IPv6 has a prefix."""
    return f"{_IPV6}{host}" if ":" in host else host


def _address(text: str) -> str:
    bare = text[len(_IPV6) :] if text[: len(_IPV6)].upper() == _IPV6 else text
    address = ip_address(bare)
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise ValueError("a scope id means nothing on another host")
    return host_of(str(address)) or ""


def _port(text: str) -> str:
    if not _PORT.fullmatch(text) or int(text) > 65535:  # noqa: PLR2004 - TCP's greatest port
        raise ValueError("not a port")
    return str(int(text))


def _host_name(text: str) -> str:
    if not HOST_NAME.fullmatch(text):
        raise ValueError("not a host name")
    return text


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text.upper() not in words:
            raise ValueError(f"not one of {', '.join(words)}")
        return text.upper()

    return read


def _text(text: str) -> str:
    if not text.isprintable():
        raise ValueError("not printable")
    return text


XCLIENT: dict[str, Callable[[str], str]] = {
    "NAME": _host_name,
    "ADDR": _address,
    "PORT": _port,
    "PROTO": _one_of("SMTP", "ESMTP"),
    "HELO": _text,
    "LOGIN": _text,
    "DESTADDR": _address,
    "DESTPORT": _port,
    "REVERSE_NAME": _host_name,
}
"""The attributes of XCLIENT, with the functions that parse their values."""

XFORWARD: dict[str, Callable[[str], str]] = {
    "NAME": _text,
    "ADDR": _address,
    "PORT": _port,
    "PROTO": _text,
    "HELO": _text,
    "IDENT": _text,
    "SOURCE": _one_of("LOCAL", "REMOTE"),
}
"""The attributes of XFORWARD, with the functions that parse their values."""


def parse_attributes(text: str, known: dict[str, Callable[[str], str]]) -> Attributes:
    """Parse the argument of XCLIENT or XFORWARD; the last of repeated attributes applies.

    :raises ValueError: it is malformed; the text is that of the reply
    """
    attributes: Attributes = {}
    for word in text.split():
        name, _, value = word.partition("=")
        name = name.upper()
        if not value:
            raise ValueError("Error: attribute=value expected")
        if name not in known:
            raise ValueError("Error: unknown attribute name")
        if len(value) > LONGEST_VALUE:
            raise ValueError(f"Error: the value of {name} is too long")
        attributes[name] = _value(name, value, known[name])
    return attributes


def _value(name: str, word: str, read: Callable[[str], str]) -> str | None:
    if word.upper() in {UNAVAILABLE, TEMPORARILY}:
        return None
    try:
        return read(from_xtext(word))
    except ValueError:
        raise ValueError(f"Error: the value of {name} is malformed") from None
