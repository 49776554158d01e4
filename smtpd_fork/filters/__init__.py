"""Filters: handlers that answer only to refuse, and leave all else to the handlers behind them."""

from smtpd_fork.filters.accept import Accept
from smtpd_fork.filters.base import Filter
from smtpd_fork.filters.milter import Milter

__all__ = ["Accept", "Filter", "Milter"]
