"""From an address to an accepted socket with a ticket: bind(2), listen(2), accept(2)."""

from smtpd_fork.listeners.acceptor import Acceptor
from smtpd_fork.listeners.address import ANY, Address, parse_address, spread
from smtpd_fork.listeners.bind import (
    adopt,
    bind_all,
    open_listeners,
    reopen_listeners,
    try_to_bind,
    wanted_addresses,
)
from smtpd_fork.listeners.inherited import handed_listeners, inherited_listeners
from smtpd_fork.listeners.listener import Listener
from smtpd_fork.listeners.preconnect import Preconnect
from smtpd_fork.listeners.probes import Probes
from smtpd_fork.listeners.refusals import Refuser
from smtpd_fork.listeners.resolver import resolver_of

__all__ = [
    "ANY",
    "Acceptor",
    "Address",
    "Listener",
    "Preconnect",
    "Probes",
    "Refuser",
    "adopt",
    "bind_all",
    "handed_listeners",
    "inherited_listeners",
    "open_listeners",
    "parse_address",
    "reopen_listeners",
    "resolver_of",
    "spread",
    "try_to_bind",
    "wanted_addresses",
]
