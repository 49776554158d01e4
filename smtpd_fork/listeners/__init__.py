"""Listening sockets, accepted clients, and the steps between accept(2) and a session."""

from smtpd_fork.listeners.acceptor import Acceptor
from smtpd_fork.listeners.address import ANY, Address, expand_ports, parse_address
from smtpd_fork.listeners.bind import (
    adopt,
    bind_all,
    open_listeners,
    reopen_listeners,
    try_to_bind,
    wanted_addresses,
)
from smtpd_fork.listeners.inherited import inherited_listeners, listeners_of_old_process
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
    "expand_ports",
    "inherited_listeners",
    "listeners_of_old_process",
    "open_listeners",
    "parse_address",
    "reopen_listeners",
    "resolver_of",
    "try_to_bind",
    "wanted_addresses",
]
