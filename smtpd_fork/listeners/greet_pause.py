"""GreetPause: delays the greeting, and refuses clients that send data before it.

A client must wait for the greeting (RFC 5321 3.1 and 4.3.1). Programs that send spam often do not,
and send data within a second or two. Such a client may also be denied for a time.
"""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING

from smtpd_fork.gate import Refusal
from smtpd_fork.listeners.pending_clients import WatchedClients
from smtpd_fork.setting_types import SettingError

if TYPE_CHECKING:
    import asyncio

    from smtpd_fork.config import Config
    from smtpd_fork.gate import Gate, Ticket
    from smtpd_fork.gate.client import Client
    from smtpd_fork.listeners.accepted_client import AcceptedClient
    from smtpd_fork.listeners.pending_clients import Begin, PendingClient, Refuse

__all__ = ["GreetPause"]

RULE = "greet_pause"

STRESS_SHARE = 1 / 3
"""Share of the pause while few connection slots are free; as in Postfix, 2 s instead of 6 s."""

_COMMAND = re.compile(rb"[A-Za-z]{1,16}")
"""The part of the received data that is logged: arguments may be secrets."""


class GreetPause(WatchedClients):
    """Holds clients for a few seconds; a client that sends nothing passes.

    :param config: ``greet_pause``, ``greet_pause_deny``, and ``stress_timeout``
    :param gate: denies clients, and reports whether few connection slots are free
    """

    phase = "greet-pause"

    def __init__(
        self,
        config: Config,
        loop: asyncio.AbstractEventLoop,
        begin: Begin,
        refuse: Refuse,
        *,
        gate: Gate,
    ) -> None:
        super().__init__(config.greet_pause, loop, begin, refuse)
        self._seconds = self._current_seconds = config.greet_pause
        shorter = min(self._seconds * STRESS_SHARE, config.stress_timeout)
        self._stress_seconds = shorter or self._seconds
        self._deny_seconds = config.greet_pause_deny
        self._gate = gate

    @staticmethod
    def concerns(client: AcceptedClient, ticket: Ticket) -> bool:
        """Whether a client has to wait.

        Exceptions are implicit TLS, where the client sends first; LMTP, where clients are local
        programs; and clients without an IP address, as on a unix socket or for the health check
        of a proxy, to which only the limit of all sessions applies.
        """
        judged, address = ticket.client, client.listener.address
        return not (judged.exempt or judged.number is None or address.tls or address.lmtp)

    def hold(self, client: AcceptedClient, ticket: Ticket) -> None:
        """Hold a client until it passes, or is closed."""
        seconds = self._stress_seconds if self._gate.slots.stressed else self._seconds
        if seconds != self._current_seconds:
            self._current_seconds = seconds
            self._clients.change(seconds)  # also for clients that already wait
        super().hold(client, ticket)

    def _on_readable(self, client: PendingClient) -> bool:
        try:
            data = client.sock.recv(16, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        self._remove(client)
        if data:
            self._refuse(client, self._refusal(client.ticket.client, data))
        else:
            client.close()
        return True

    def _on_timeout(self, client: PendingClient) -> None:
        self._begin(client, client.ticket)

    def _refusal(self, client: Client, data: bytes) -> Refusal:
        command = _COMMAND.match(data)
        detail = f"sent {command[0].decode() if command else 'data'} before the greeting"
        if self._deny_seconds:
            detail += f", {self._deny(client)}"
        key, text = client.key or "", "Wait for the greeting"
        return Refusal(RULE, key, 1, 0, code=554, status="5.5.1", text=text, detail=detail)

    def _deny(self, client: Client) -> str:
        """Add a client to the denials, if that is possible; return the result for the log.

        A local address is not denied: it may be a bridge or a proxy that many clients share.
        """
        allow, seconds = self._gate.limits.allow, self._deny_seconds
        if client.local:
            return "not denied as its network is local"
        if allow is not None and allow.find(client.number) is not None:
            return "not denied as it is allowed"
        text = "Sent data before the greeting"
        try:
            self._gate.denials.add(client.key or "", text, seconds=seconds, by=RULE, automatic=True)
        except SettingError as error:
            return f"not denied: {error.reason}"
        return f"denied for {seconds:g} s"
