"""Target: the settings of a next hop: its addresses, TLS and credentials."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from smtpd_fork.errors import ConfigError
from smtpd_fork.hops.client import Client, Terms
from smtpd_fork.setting_types import SettingError

if TYPE_CHECKING:
    from smtpd_fork.hops.address import HopAddress
    from smtpd_fork.hops.errors import HopError
    from smtpd_fork.hops.hop_client import HopClient

__all__ = ["PassClient", "Target", "Tls"]

Tls: TypeAlias = Literal["no", "opportunistic", "starttls", "implicit"]
"""``no``: plaintext. ``opportunistic``: STARTTLS if the hop offers it, with any certificate.
``starttls``: STARTTLS, and a certificate that is valid for the hop's name. ``implicit``: the same
as implicit TLS (RFC 8314)."""

PassClient: TypeAlias = Literal["no", "xclient", "xforward"]
"""The command that describes our client to the hop (:mod:`smtpd_fork.hops.passed_client`)."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,255}|\[[A-Za-z0-9:.]+\]")

_STARTTLS = {"no": "no", "opportunistic": "offered", "starttls": "required", "implicit": "no"}


@dataclass(frozen=True)
class Target:
    """A next hop. Connections are shared only by equal targets.

    :cvar kind: the kind of server, for the log
    :ivar addresses: the addresses in the order in which they are tried
    :ivar name: our host name for EHLO; empty: that of the server or the host
    :ivar lmtp: whether the protocol is LMTP
    :ivar tls: see :data:`Tls`
    :ivar ca_file: file of trusted CA certificates; None: the system's
    :ivar user: the user name for AUTH; None: no AUTH
    :ivar password: the password for AUTH; None: no AUTH
    :ivar nameserver: address and port of the DNS server for ``mx:``; None: the system's
    :ivar client_by: the command that describes our client to the hop
    """

    kind: ClassVar[str] = "next hop"

    addresses: tuple[HopAddress, ...]
    name: str
    lmtp: bool = False
    tls: Tls = "no"
    ca_file: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    nameserver: tuple[str, int] | None = None
    client_by: PassClient = "no"

    def terms(self, name: str, *, with_tls: bool = True) -> Terms:
        """Return the requirements of a session with the hop.

        :param name: our host name for EHLO
        :param with_tls: False: without STARTTLS, after an opportunistic handshake has failed
        """
        starttls = _STARTTLS[self.tls] if with_tls else "no"
        xclient = self.client_by == "xclient"
        return Terms(name, self.lmtp, starttls, self.user, self.password, xclient)

    def client(self, name: str, *, with_tls: bool = True) -> HopClient:
        """Return the state of the protocol for a new connection; see :meth:`terms`."""
        return Client(self.terms(name, with_tls=with_tls), encrypted=self.tls == "implicit")

    def while_down(self, error: HopError) -> str:
        """Return what happens to messages while the hop is down, for the log."""
        return f"messages get {error.reply[:3]}"

    def validate(self) -> None:
        """Check that the settings do not contradict each other.

        :raises SettingError: they contradict each other
        """
        if self.name and not _NAME.fullmatch(self.name):
            raise SettingError("helo", self.name, "not the name of a host")
        verified = self.tls in {"starttls", "implicit"}
        if verified and any(address.path for address in self.addresses):
            raise SettingError("tls", self.tls, "a unix socket needs no TLS: write tls=no")
        if self.ca_file is not None and not verified:
            reason = f"has no effect with tls={self.tls}: write tls=starttls or tls=implicit"
            raise SettingError("ca-file", self.ca_file, reason)
        if (self.user is None) != (self.password is None):
            raise SettingError("user", self.user or "", "user requires password, and vice versa")
        if self.user is not None and self.client_by == "xclient":
            reason = "not with user: the hop would take all clients for authenticated ones"
            raise SettingError("pass-client", self.client_by, reason)
        if self.user is not None and not verified and not all(map(_is_local, self.addresses)):
            reason = "a password needs tls=starttls or tls=implicit"
            raise SettingError("tls", self.tls, reason)

    @cached_property
    def tls_context(self) -> ssl.SSLContext:
        """The TLS context of connections.

        :raises ConfigError: the file of CA certificates cannot be used
        """
        if self.tls == "opportunistic":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return context
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(f"ca-file {self.ca_file}: {reason}") from None

    def __str__(self) -> str:
        return ", ".join(str(address) for address in self.addresses)


def _is_local(address: HopAddress) -> bool:
    """Return whether traffic to the address does not leave this host."""
    return bool(address.path) or address.host.startswith("127.") or address.host == "::1"
