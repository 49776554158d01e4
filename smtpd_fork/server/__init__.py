"""The server: listeners, gate, sessions and handlers, started and stopped together."""

from smtpd_fork.server.server import Server

__all__ = ["Server"]
