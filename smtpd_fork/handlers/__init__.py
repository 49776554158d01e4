"""Handlers: the chain of them, and how they are found by name."""

from smtpd_fork.handlers.chain import Chain
from smtpd_fork.handlers.load import load_handler, load_handlers

__all__ = ["Chain", "load_handler", "load_handlers"]
