"""A fleet: nodes that share limits, each of them one process of this program.

A node tells the others its state and asks about new clients, in one message: ``sync.py`` has its
fields. ``sync.lua`` is what Redis or Valkey does with it, ``ledger.py`` the same in Python.
"""

from smtpd_fork.fleet.fleet import Fleet, State
from smtpd_fork.fleet.settings import fleet_of

__all__ = ["Fleet", "State", "fleet_of"]
