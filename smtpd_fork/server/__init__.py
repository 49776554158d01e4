"""The server: listeners, gate, sessions and handlers, started and stopped together."""

from smtpd_fork.server.server import Server
from smtpd_fork.server.threaded import ThreadedServer

__all__ = ["Server", "ThreadedServer"]
