"""A fleet: nodes that share limits. Each node is one process of this program.

A node sends its counts, and its questions about new clients, in one message; ``sync.py`` describes
the fields. Redis or Valkey answers it by the script ``sync.lua``; ``ledger.py`` does the same in
Python.
"""

from smtpd_fork.fleet.fleet import Fleet, State
from smtpd_fork.fleet.settings import fleet_of

__all__ = ["Fleet", "State", "fleet_of"]
