"""Handlers: loads handlers by name, and combines several of them in a chain."""

from smtpd_fork.handlers.chain import Chain
from smtpd_fork.handlers.load import load_handler, load_handlers, load_handlers_again, modules_of
from smtpd_fork.handlers.route import Route

__all__ = [
    "Chain", "Route", "load_handler", "load_handlers", "load_handlers_again", "modules_of",
]  # fmt: skip
