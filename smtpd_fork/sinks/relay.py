"""Relay: pass messages on to another mail server by SMTP."""

from __future__ import annotations

from smtpd_fork.hops.address import SMTP_PORT, parse_hop_addresses
from smtpd_fork.hops.target import PassClient, Target, Tls
from smtpd_fork.listeners.resolver import parse_nameserver
from smtpd_fork.setting_types import Count, FilePath, Seconds, Secret, Text
from smtpd_fork.sinks.next_hop import NextHop

__all__ = ["Relay"]


class Relay(NextHop):
    """Passes messages on by SMTP.

    :param address: ``HOST``, ``HOST:PORT``, ``unix:PATH`` or ``mx:DOMAIN``; several are tried in
        order
    :param connections: maximum connections to the server
    :param wait: seconds that a message waits for a connection before it gets 451
    :param timeout: maximum seconds for a message
    :param verify: ask the server about each recipient at RCPT, and refuse those that it refuses
    :param tls: ``no``, ``opportunistic``, ``starttls`` or ``implicit``
    :param ca_file: file of trusted CA certificates; default: the system's
    :param user: user name for AUTH PLAIN or LOGIN
    :param password: password for AUTH
    :param dsn: offer DSN to clients (RFC 3461), if the server does
    :param binarymime: offer BINARYMIME to clients, if the server does
    :param helo: the name for EHLO; default: that of this server
    :param dns_server: ``ADDRESS[:PORT]`` of the DNS server for ``mx:``; default: the system's
    :param pass_client: describe the client to the server: by ``xclient``, so that the server
        applies its access rules to it, or by ``xforward``, for the server's log
    :raises SettingError: a value cannot be used
    """

    relays = True

    def __init__(
        self,
        address: str | list[str],
        *,
        connections: Count = 10,
        wait: Seconds = 5.0,
        timeout: Seconds = 295.0,
        verify: bool = True,
        tls: Tls = "opportunistic",
        ca_file: FilePath | None = None,
        user: Text | None = None,
        password: Secret | None = None,
        dsn: bool = False,
        binarymime: bool = False,
        helo: Text | None = None,
        pass_client: PassClient = "no",  # noqa: S107 - no password
        dns_server: Text | None = None,
    ) -> None:
        self.supports_dsn = dsn
        self.supports_binarymime = binarymime
        target = Target(
            parse_hop_addresses(address, default_port=SMTP_PORT),
            helo or "",
            tls=tls,
            ca_file=ca_file,
            user=user,
            password=password,
            nameserver=parse_nameserver(dns_server),
            client_by=pass_client,
        )
        target.validate()
        super().__init__(target, connections=connections, wait=wait, timeout=timeout, verify=verify)
