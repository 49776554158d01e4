"""Target: all that makes one next hop: where it is, and on which terms a connection is made."""

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
"""How a hop learns of the client (:mod:`smtpd_fork.hops.passed_client`)."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,255}|\[[A-Za-z0-9:.]+\]")

_STARTTLS = {"no": "no", "opportunistic": "offered", "starttls": "required", "implicit": "no"}


@dataclass(frozen=True)
class Target:
    """A next hop. Connections are used again for an equal target only.

    :cvar kind: what it is, for the log
    :ivar addresses: in the order in which they are tried
    :ivar name: our own, for EHLO; empty: the server's, or the host's
    :ivar lmtp: the protocol is LMTP
    :ivar tls: see :data:`Tls`
    :ivar ca_file: CA certificates that are trusted; None: the system's
    :ivar user: for AUTH; None without it
    :ivar password: so too
    :ivar nameserver: whom to ask about ``mx:``, and its port; None: the system's
    :ivar client_by: how the hop learns of the client
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
        """Return what is asked of the hop.

        :param name: ours, for EHLO
        :param with_tls: False: leave out what is merely opportunistic
        """
        starttls = _STARTTLS[self.tls] if with_tls else "no"
        xclient = self.client_by == "xclient"
        return Terms(name, self.lmtp, starttls, self.user, self.password, xclient)

    def client(self, name: str, *, with_tls: bool = True) -> HopClient:
        """Return what speaks the protocol on a new connection; see :meth:`terms`."""
        return Client(self.terms(name, with_tls=with_tls), encrypted=self.tls == "implicit")

    def while_down(self, error: HopError) -> str:
        """Return what happens while it cannot be reached, for the log."""
        return f"messages get {error.reply[:3]}"

    def validate(self) -> None:
        """See that the settings do not contradict each other.

        :raises SettingError: they do
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
            raise SettingError("user", self.user or "", "user and password need each other")
        if self.user is not None and self.client_by == "xclient":
            reason = "with user the clients would be authenticated: the hop has to trust this host"
            raise SettingError("pass-client", self.client_by, reason)
        if self.user is not None and not verified and not all(map(_is_local, self.addresses)):
            reason = "a password needs tls=starttls or tls=implicit"
            raise SettingError("tls", self.tls, reason)

    @cached_property
    def tls_context(self) -> ssl.SSLContext:
        """What TLS is made with.

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
    """Whether nobody can listen between this host and the address."""
    return bool(address.path) or address.host.startswith("127.") or address.host == "::1"
