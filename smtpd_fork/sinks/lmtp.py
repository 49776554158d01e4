"""Lmtp: messages to a server that puts them into mailboxes, as Dovecot (RFC 2033)."""

from __future__ import annotations

from smtpd_fork.hops.address import parse_hop_addresses
from smtpd_fork.hops.target import PassClient, Target, Tls
from smtpd_fork.setting_types import Count, FilePath, Seconds, Text
from smtpd_fork.sinks.next_hop import NextHop

__all__ = ["Lmtp"]


class Lmtp(NextHop):
    """Passes messages on by LMTP; each recipient has a reply of its own.

    :param address: ``unix:PATH`` or ``HOST:PORT``; several are tried in order
    :param connections: to the server at once
    :param wait: how long a message waits for one of them; then it is answered 451
    :param timeout: how long a message may take
    :param verify: ask the server about each recipient at RCPT, and refuse those that it refuses
    :param tls: ``no``, ``opportunistic``, ``starttls`` or ``implicit``
    :param ca_file: CA certificates that are trusted; default: the system's
    :param binarymime: offer BINARYMIME to clients, because the server does
    :param helo: the name for LHLO; default: that of this server
    :param pass_client: tell the server who the client is: by ``xclient``, so that it judges the
        client as its own, or by ``xforward``, for its log
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
