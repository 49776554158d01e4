"""Opens the listening sockets of ``--metrics``, before privileges are dropped."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from smtpd_fork.config import DaemonConfig, SettingError
from smtpd_fork.errors import MissingLibraryError
from smtpd_fork.listeners import Address, Listener, bind_all, parse_address

__all__ = ["metrics_address", "open_metrics", "wanted_metrics"]

BACKLOG = 64
"""Backlog of the listening socket; the kernel does not answer further clients."""

LIBRARIES = ("aiohttp", "prometheus_client")


def metrics_address(text: str) -> Address:
    """Return the address of ``HOST:PORT``, ``[V6]:PORT``, ``:PORT`` or ``unix:PATH``.

    :raises SettingError: *text* cannot be read
    """
    try:
        address = parse_address(text)
    except SettingError as error:
        raise SettingError("metrics", text, error.reason) from None
    if address.scheme != "smtp" or text.startswith("smtp:"):
        raise SettingError("metrics", text, "expected no protocol: this address serves HTTP only")
    if address.path is None and address.port is None:
        raise SettingError("metrics", text, "write HOST:PORT, [V6]:PORT, :PORT or unix:PATH")
    return address


def wanted_metrics(config: DaemonConfig) -> Address | None:
    """Return the address of ``--metrics``, None without it; check that the libraries are installed.

    :raises SettingError: the address cannot be read
    :raises MissingLibraryError: a library is not installed
    """
    if config.metrics is None:
        return None
    address = metrics_address(config.metrics)
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise MissingLibraryError(f"metrics on {config.metrics}", missing, "metrics")
    return address


def open_metrics(config: DaemonConfig, warn: Callable[[str], object]) -> list[Listener]:
    """Bind the address of ``--metrics``; return its sockets, or none without the option.

    :param warn: called with a warning for each address of a name that is skipped
    :raises SmtpdForkError: as :func:`wanted_metrics` and :func:`smtpd_fork.listeners.bind_all`
    """
    address = wanted_metrics(config)
    if address is None:
        return []
    return bind_all([address], backlog=BACKLOG, socket_mode=config.socket_mode, warn=warn)
