"""GreetPause: clients wait for the greeting; one that talks before it is no mail server.

RFC 5321 3.1 and 4.3.1: a client waits for the greeting. What sends spam often does not, and gives
itself away in a second or two. The client may be denied for a time as well.
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
"""Of the pause, while connection slots are short, as Postfix has it: 2 s instead of 6 s."""

_COMMAND = re.compile(rb"[A-Za-z]{1,16}")
"""All that the log has of what a client has sent: arguments may be secrets."""


class GreetPause(WatchedClients):
    """Holds clients for a few seconds; those that keep silent pass.

    :param config: ``greet_pause``, ``greet_pause_deny``, and ``stress_timeout``
    :param gate: denies clients, and knows whether connection slots are short
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
        self._seconds = self._now = config.greet_pause
        self._in_stress = min(self._seconds * STRESS_SHARE, config.stress_timeout) or self._seconds
        self._deny_seconds = config.greet_pause_deny
        self._gate = gate

    @staticmethod
    def concerns(client: AcceptedClient, ticket: Ticket) -> bool:
        """Whether a client has to wait.

        Under TLS it speaks first; LMTP is spoken by one's own programs; without an address, as on a
        unix socket or at a health check of a proxy, only the limit of all sessions applies.
        """
        judged, address = ticket.client, client.listener.address
        return not (judged.exempt or judged.number is None or address.tls or address.lmtp)

    def hold(self, client: AcceptedClient, ticket: Ticket) -> None:
        """Hold a client until it passes, or is closed."""
        seconds = self._in_stress if self._gate.slots.stressed else self._seconds
        if seconds != self._now:
            self._now = seconds
            self._clients.change(seconds)  # also for those that came before
        super().hold(client, ticket)

    def _heard(self, client: PendingClient) -> bool:
        try:
            data = client.sock.recv(16, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        self._let_go(client)
        if data:
            self._refuse(client, self._refusal(client.ticket.client, data))
        else:
            client.close()
        return True

    def _over(self, client: PendingClient) -> None:
        self._begin(client, client.ticket)

    def _refusal(self, client: Client, data: bytes) -> Refusal:
        command = _COMMAND.match(data)
        detail = f"sent {command[0].decode() if command else 'data'} before the greeting"
        if self._deny_seconds:
            detail += f", {self._deny(client)}"
        key, text = client.key or "", "Wait for the greeting"
        return Refusal(RULE, key, 1, 0, code=554, status="5.5.1", text=text, detail=detail)

    def _deny(self, client: Client) -> str:
        """Have the gate refuse a client from now on; return what has become of that, for the log.

        A local address may be that of a bridge or a proxy, which stands for many clients.
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
