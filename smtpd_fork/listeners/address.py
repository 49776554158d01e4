"""Addresses to listen on, as they are written in settings.

::

    [SCHEME:]HOST[:PORT]     127.0.0.1   [::1]:25   smtps:0.0.0.0:465   localhost   *:2525
    [SCHEME:]:PORT           :25   smtp+proxy::2526
    [SCHEME:]unix:PATH       unix:/run/smtpd.sock

An address without a host, or with the host ``*``, means all addresses of the machine.
A scheme is the protocol: ``smtp`` (the default), ``smtps`` (implicit TLS, RFC 8314) or ``lmtp``
(RFC 2033). Flags may follow the protocol, in any order, as in
``smtp+proxy+require-tls:[::]:2526``:

- ``+proxy``: each connection begins with a PROXY header;
- ``+require-tls``: no mail in plaintext, like ``--require-starttls`` for this address only;
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

__all__ = ["ANY", "Address", "expand_ports", "parse_address", "scheme_of_name"]

ANY = "*"
"""All interfaces, IPv4 and IPv6."""

PROTOCOLS = ("smtp", "smtps", "lmtp")
FLAGS = ("proxy", "require-tls", "no-tls")
"""The flags of a scheme, in the order of its normal form."""

MAX_PORT = 65535
MAX_UNIX_PATH = 107
"""Bytes in sockaddr_un.sun_path, without its final NUL: unix(7)."""

_HEXADECIMAL = frozenset("0123456789abcdef")

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,253}[A-Za-z0-9_.])?")


@dataclass(frozen=True, slots=True)
class Address:
    """One address to listen on.

    :ivar scheme: ``smtp``, ``smtps`` or ``lmtp``, followed by the flags in the order of
        :data:`FLAGS`
    :ivar host: a name, an IP address, or ``*``; empty for a unix socket
    :ivar port: None if the address names none
    :ivar path: the path of a unix socket, else None
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
        """The flags of the scheme."""
        return frozenset(self.scheme.split("+")[1:])

    @property
    def tls(self) -> bool:
        """Whether connections use implicit TLS."""
        return self.protocol == "smtps"

    @property
    def lmtp(self) -> bool:
        """Whether the protocol is LMTP."""
        return self.protocol == "lmtp"

    @property
    def proxy(self) -> bool:
        """Whether each connection begins with a PROXY header."""
        return "proxy" in self.flags

    @property
    def require_tls(self) -> bool:
        """Whether mail is accepted only over TLS."""
        return "require-tls" in self.flags

    @property
    def no_tls(self) -> bool:
        """Whether STARTTLS is not offered even if a certificate is configured."""
        return "no-tls" in self.flags

    @property
    def local(self) -> bool:
        """Whether only clients of this host and of private networks can reach it."""
        return self.path is not None or self.host == "localhost" or is_local(number_of(self.host))

    def overlaps(self, other: Address) -> bool:
        """Whether two sockets cannot be bound to both addresses; names are not resolved."""
        if self.path is not None or other.path is not None:
            return self.path == other.path
        if self.port != other.port or not self.port:
            return False
        hosts = {self.host, other.host}
        if ANY in hosts or len(hosts) == 1:
            return True
        # [::] is bound for IPv6 only if 0.0.0.0 has the same port: see bind.py
        if "::" in hosts:
            return "0.0.0.0" not in hosts  # noqa: S104 - compared only
        return "0.0.0.0" in hosts and not any(":" in host for host in hosts)  # noqa: S104 - so too

    def __str__(self) -> str:
        if self.path is not None:
            text = f"unix:{self.path}"
        else:
            host = f"[{self.host}]" if ":" in self.host else self.host
            text = host if self.port is None else f"{host}:{self.port}"
        return text if self.scheme == "smtp" else f"{self.scheme}:{text}"


def parse_address(text: str) -> Address:
    """Parse an address; make a relative path absolute.

    :raises SettingError: *text* is not an address
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


def scheme_of_name(name: str) -> str:
    """Return the scheme for the name of an inherited socket; ``smtp`` if *name* is not a scheme.

    :raises SettingError: *name* begins with a protocol and has unknown flags
    """
    if name.partition("+")[0] not in PROTOCOLS:
        return "smtp"
    return _scheme(f"{name}:")[0]


def _scheme(text: str) -> tuple[str, str]:
    """Split an address into its scheme, with the flags in normal order, and the rest."""
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
        raise SettingError("listen", text, "smtps is implicit TLS and excludes +no-tls")
    return "+".join([protocol, *(flag for flag in FLAGS if flag in flags)]), rest


def expand_ports(addresses: Iterable[Address], ports: Sequence[int]) -> list[Address]:
    """Combine each address that has no port with each of *ports*, as qpsmtpd-forkserver does.

    Duplicates are removed, except with port 0: each of them is bound to a free port of its own.
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
    """Raise an error if *rest*, which has several colons, begins with an unknown protocol."""
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
    # int() alone would accept signs, spaces, underscores, and digits of other scripts.
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
