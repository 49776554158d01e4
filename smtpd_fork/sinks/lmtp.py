"""Lmtp: deliver messages to a server with mailboxes, such as Dovecot (RFC 2033)."""

from __future__ import annotations

from smtpd_fork.hops.address import parse_hop_addresses
from smtpd_fork.hops.target import PassClient, Target, Tls
from smtpd_fork.setting_types import Count, FilePath, Seconds, Text
from smtpd_fork.sinks.next_hop import NextHop

__all__ = ["Lmtp"]


class Lmtp(NextHop):
    """Delivers messages by LMTP; each recipient gets its own reply.

    :param address: ``unix:PATH`` or ``HOST:PORT``; several are tried in order
    :param connections: maximum connections to the server
    :param wait: seconds that a message waits for a connection before it gets 451
    :param timeout: maximum seconds for a message
    :param verify: ask the server about each recipient at RCPT, and refuse those that it refuses
    :param tls: ``no``, ``opportunistic``, ``starttls`` or ``implicit``
    :param ca_file: file of trusted CA certificates; default: the system's
    :param binarymime: offer BINARYMIME to clients, if the server does
    :param helo: the name for LHLO; default: that of this server
    :param pass_client: describe the client to the server: by ``xclient``, so that the server
        applies its access rules to it, or by ``xforward``, for the server's log
    :raises SettingError: a value cannot be used
    """

    def __init__(
        self,
        address: str | list[str],
        *,
        connections: Count = 10,
        wait: Seconds = 5.0,
        timeout: Seconds = 295.0,
        verify: bool = True,
        tls: Tls = "no",
        ca_file: FilePath | None = None,
        binarymime: bool = False,
        helo: Text | None = None,
        pass_client: PassClient = "no",  # noqa: S107 - no password
    ) -> None:
        self.supports_binarymime = binarymime
        target = Target(
            parse_hop_addresses(address, default_port=None),
            helo or "",
            lmtp=True,
            tls=tls,
            ca_file=ca_file,
            client_by=pass_client,
        )
        target.validate()
        super().__init__(target, connections=connections, wait=wait, timeout=timeout, verify=verify)
