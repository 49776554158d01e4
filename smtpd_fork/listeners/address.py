"""Addresses to listen on, as settings have them.

::

    [SCHEME:]HOST[:PORT]     127.0.0.1   [::1]:25   smtps:0.0.0.0:465   localhost   *:2525
    [SCHEME:]:PORT           :25   smtp+proxy::2526
    [SCHEME:]unix:PATH       unix:/run/smtpd.sock

An address without a host is every address of the machine, as ``*`` is.
A scheme is the protocol: ``smtp`` (the default), ``smtps`` (implicit TLS, RFC 8314) or ``lmtp``
(RFC 2033). Flags may follow it, in any order, as in
``smtp+proxy+require-tls:[::]:2526``:

- ``+proxy``: a PROXY header comes first;
- ``+require-tls``: no mail in plaintext, as ``--require-starttls`` for all;
- ``+no-tls``: STARTTLS is not offered.

An address without a port is bound on every port of ``-p``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING

from smtpd_fork.config import SettingError
from smtpd_fork.gate.networks import is_local, number_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["ANY", "Address", "parse_address", "scheme_called", "spread"]

ANY = "*"
"""All interfaces, IPv4 and IPv6."""

PROTOCOLS = ("smtp", "smtps", "lmtp")
FLAGS = ("proxy", "require-tls", "no-tls")
"""In the order in which a scheme has them, however it was written."""

MAX_PORT = 65535
MAX_UNIX_PATH = 107
"""Bytes in sockaddr_un.sun_path, without its final NUL: unix(7)."""

_HEXADECIMAL = frozenset("0123456789abcdef")

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,253}[A-Za-z0-9_.])?")


@dataclass(frozen=True, slots=True)
class Address:
    """One address to listen on.

    :ivar scheme: ``smtp``, ``smtps`` or ``lmtp``, and the flags behind it, in the order of
        :data:`FLAGS`
    :ivar host: a name, an IP address, or ``*``; empty for a unix socket
    :ivar port: None if the address names none
    :ivar path: of a unix socket, else None
    """

    scheme: str = "smtp"
    host: str = ""
    port: int | None = None
    path: Path | None = None

    @property
    def protocol(self) -> str:
        """The scheme without its flags."""
        return self.scheme.partition("+")[0]

    @property
    def flags(self) -> frozenset[str]:
        """What follows the protocol."""
        return frozenset(self.scheme.split("+")[1:])

    @property
    def tls(self) -> bool:
        """Whether it is implicit TLS."""
        return self.protocol == "smtps"

    @property
    def lmtp(self) -> bool:
        """Whether it is LMTP."""
        return self.protocol == "lmtp"

    @property
    def proxy(self) -> bool:
        """Whether a PROXY header comes first."""
        return "proxy" in self.flags

    @property
    def require_tls(self) -> bool:
        """Whether mail is accepted with TLS only."""
        return "require-tls" in self.flags

    @property
    def no_tls(self) -> bool:
        """Whether STARTTLS is not offered, though there is a certificate."""
        return "no-tls" in self.flags

    @property
    def local(self) -> bool:
        """Whether only clients of this host and of private networks can reach it."""
        return self.path is not None or self.host == "localhost" or is_local(number_of(self.host))

    def overlaps(self, other: Address) -> bool:
        """Whether the system cannot give both to sockets; names are not resolved."""
        if self.path is not None or other.path is not None:
            return self.path == other.path
        if self.port != other.port or not self.port:
            return False
        hosts = {self.host, other.host}
        if ANY in hosts or len(hosts) == 1:
            return True
        # [::] next to 0.0.0.0 is of IPv6 alone: see bind.py
        if "::" in hosts:
            return "0.0.0.0" not in hosts  # noqa: S104 - compared only
        return "0.0.0.0" in hosts and not any(":" in host for host in hosts)  # noqa: S104 - so too

    def __str__(self) -> str:
        if self.path is not None:
            place = f"unix:{self.path}"
        else:
            host = f"[{self.host}]" if ":" in self.host else self.host
            place = host if self.port is None else f"{host}:{self.port}"
        return place if self.scheme == "smtp" else f"{self.scheme}:{place}"


def parse_address(text: str) -> Address:
    """Return the address that *text* names; relative paths are made absolute.

    :raises SettingError: *text* is no address
    """
    scheme, rest = _scheme(text)
    if rest.startswith("unix:"):
        return Address(scheme, path=_unix_path(text, rest.removeprefix("unix:")))
    if rest.startswith("["):
        host, bracket, port = rest[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise SettingError("listen", text, "an IPv6 address is written [ADDRESS]:PORT")
        _check_ipv6(text, host)
        return Address(scheme, host, _port(text, port[1:]) if port else None)
    if rest.count(":") > 1:
        _check_protocol(text, rest)
        _check_ipv6(text, rest)
        return Address(scheme, rest)
    host, colon, port = rest.partition(":")
    if colon and not host:
        return Address(scheme, ANY, _port(text, port))
    if host != ANY and not _NAME.fullmatch(host):
        raise SettingError(
            "listen", text, "not an address; write HOST, HOST:PORT, :PORT or unix:PATH"
        )
    return Address(scheme, host, _port(text, port) if colon else None)


def scheme_called(name: str) -> str:
    """Return the scheme that *name* is; any other name is SMTP.

    :raises SettingError: it begins as a scheme does, and has flags that are none
    """
    if name.partition("+")[0] not in PROTOCOLS:
        return "smtp"
    return _scheme(f"{name}:")[0]


def _scheme(text: str) -> tuple[str, str]:
    """Return the scheme of an address, its flags in their order, and what follows it."""
    words, colon, rest = text.partition(":")
    protocol, *flags = words.split("+")
    if not colon or (protocol not in PROTOCOLS and not flags):
        return "smtp", text
    if protocol not in PROTOCOLS:
        raise _no_protocol(text, protocol)
    for flag in flags:
        if flag not in FLAGS:
            reason = f"'+{flag}' is not a flag; the flags are +{', +'.join(FLAGS)}"
            raise SettingError("listen", text, reason)
        if flags.count(flag) > 1:
            raise SettingError("listen", text, f"+{flag} is given twice")
    if "no-tls" in flags and "require-tls" in flags:
        raise SettingError("listen", text, "+no-tls and +require-tls contradict each other")
    if "no-tls" in flags and protocol == "smtps":
        raise SettingError("listen", text, "smtps is implicit TLS, +no-tls is no TLS")
    return "+".join([protocol, *(flag for flag in FLAGS if flag in flags)]), rest


def spread(addresses: Iterable[Address], ports: Sequence[int]) -> list[Address]:
    """Give each address that names no port every one of *ports*, as qpsmtpd-forkserver does.

    The same address twice is bound once; port 0 is a free port, so twice is two of them.
    """
    result: list[Address] = []
    for address in addresses:
        wanted: Iterable[int | None] = ports
        if address.path is not None or address.port is not None:
            wanted = [address.port]
        for port in wanted:
            one = replace(address, port=port)
            if port == 0 or one not in result:
                result.append(one)
    return result


def _check_protocol(text: str, rest: str) -> None:
    """See that *rest*, which has several colons, does not begin with a word that is no protocol."""
    word = rest.partition(":")[0]
    if word and not _HEXADECIMAL.issuperset(word.lower()):
        raise _no_protocol(text, word)


def _no_protocol(text: str, word: str) -> SettingError:
    reason = f"{word!r} is not a protocol; the protocols are {', '.join(PROTOCOLS)}"
    return SettingError("listen", text, reason)


def _check_ipv6(text: str, host: str) -> None:
    try:
        IPv6Address(host)
    except ValueError:
        raise SettingError("listen", text, f"{host!r} is not an IPv6 address") from None


def _port(text: str, digits: str) -> int:
    # Not int() alone: it takes signs, spaces, underscores, and digits of other scripts.
    if digits.isascii() and digits.isdigit() and len(digits) <= len(str(MAX_PORT)):
        port = int(digits)
        if port <= MAX_PORT:
            return port
    raise SettingError("listen", text, f"{digits!r} is not a port; ports go from 0 to {MAX_PORT}")


def _unix_path(text: str, path: str) -> Path:
    if not path or "\0" in path:
        raise SettingError("listen", text, "unix: needs a path")
    absolute = Path(path).absolute()
    if len(bytes(absolute)) > MAX_UNIX_PATH:
        reason = f"the path is too long; unix sockets take {MAX_UNIX_PATH} bytes"
        raise SettingError("listen", text, reason)
    return absolute
