"""Preconnect: the stages between a ticket and a session.

A proxy sends its PROXY header, the DNS is asked about the client, and the client waits for the
greeting. Each stage is there only if it is configured, and holds a client until it passes.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from smtpd_fork.config import PROXY_SECONDS
from smtpd_fork.gate import ClientLine, client_reporter
from smtpd_fork.listeners.greet_pause import GreetPause
from smtpd_fork.listeners.proxy import ProxyHeaders

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable, Mapping

    from smtpd_fork.gate import Gate, Reporter, Ticket
    from smtpd_fork.listeners.dns_checks import DnsChecks
    from smtpd_fork.listeners.listener import Listener
    from smtpd_fork.listeners.pending_clients import Refuse, Welcome
    from smtpd_fork.net import SocketAddress

__all__ = ["Preconnect"]

log = logging.getLogger("smtpd_fork.listeners")


class Preconnect:
    """Takes clients with a ticket as far as their session.

    :param gate: judges whom a proxy speaks for
    :param loop: in which clients are held
    :param welcome: takes a client that is through. It owns socket and ticket from then on, also if
        it raises
    :param refuse: answers who is not let on, and closes
    :param greet_pause: how many seconds clients wait for the greeting; 0 is not at all
    :param proxy_timeout: how many seconds a PROXY header may take
    :param dns_checks: makes what asks the DNS about clients, of ``welcome`` and ``refuse``
    :param reporter: writes lines about clients; default: one of its own
    """

    def __init__(
        self,
        gate: Gate,
        loop: asyncio.AbstractEventLoop,
        *,
        welcome: Welcome,
        refuse: Refuse,
        greet_pause: float = 0.0,
        proxy_timeout: float = PROXY_SECONDS,
        dns_checks: Callable[..., DnsChecks] | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self._reporter = reporter or client_reporter()
        self._gate = gate
        self._welcome = welcome
        self._refuse = refuse
        self._pause: GreetPause | None = None
        self._dns_checks: DnsChecks | None = None
        if greet_pause:
            self._pause = GreetPause(greet_pause, loop, welcome=self._begin, refuse=refuse)
        if dns_checks is not None:
            self._dns_checks = dns_checks(welcome=self._checked, refuse=refuse)
        self._proxies = ProxyHeaders(
            *(proxy_timeout, loop, gate),
            welcome=self._identified,
            refuse=refuse,
            reporter=self._reporter,
        )
        self._is_direct = self._dns_checks is None and self._pause is None
        self._all = [
            stage for stage in (self._proxies, self._dns_checks, self._pause) if stage is not None
        ]

    def __len__(self) -> int:
        return sum(len(stage) for stage in self._all)

    def enter(
        self, listener: Listener, sock: socket.socket, peer: SocketAddress | str, ticket: Ticket
    ) -> None:
        """Take a client; socket and ticket are not the caller's any more."""
        if listener.proxy:
            self._proxies.hold(listener, sock, peer, ticket)
        elif self._is_direct:  # as it is mostly
            self._begin(listener, sock, peer, ticket)
        else:
            self._identified(listener, sock, peer, ticket)

    def _identified(
        self, listener: Listener, sock: socket.socket, peer: SocketAddress | str, ticket: Ticket
    ) -> None:
        client = ticket.client
        if self._dns_checks is not None and not client.exempt and client.number is not None:
            self._dns_checks.hold(listener, sock, peer, ticket)
        else:
            self._checked(listener, sock, peer, ticket)

    def _checked(
        self, listener: Listener, sock: socket.socket, peer: SocketAddress | str, ticket: Ticket
    ) -> None:
        # Under TLS it is the client that speaks first.
        if self._pause is not None and not listener.tls and not ticket.client.exempt:
            self._pause.hold(listener, sock, peer, ticket)
        else:
            self._begin(listener, sock, peer, ticket)

    def _begin(
        self, listener: Listener, sock: socket.socket, peer: SocketAddress | str, ticket: Ticket
    ) -> None:
        if listener.tls and (refusal := self._gate.begin_handshake(ticket)) is not None:
            self._refuse(listener, sock, refusal)
            ticket.release()
            return
        try:
            self._welcome(listener, sock, peer, ticket)
        except Exception as error:  # noqa: BLE001 - a subclass's constructor may raise anything
            what = "a session could not be begun"
            self._reporter.note(ClientLine.of(log, logging.ERROR, peer, what), error=error)

    @property
    def zones(self) -> Mapping[str, bool]:
        """The blocklists, and whether clients are looked up in them."""
        return {} if self._dns_checks is None else self._dns_checks.zones

    def retire(self) -> None:
        """Get no more clients: others take them from now on."""
        if self._dns_checks is not None:
            self._dns_checks.retire()

    def stop(self, hostname: str) -> int:
        """Answer 421 to all; return how many there were."""
        return sum(stage.stop(hostname) for stage in self._all)
