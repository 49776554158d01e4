"""The server: starts, reloads and stops listeners, gate, sessions and handlers."""

from smtpd_fork.server.server import Server
from smtpd_fork.server.threaded import ThreadedServer

__all__ = ["Server", "ThreadedServer"]
