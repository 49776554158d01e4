"""Door: where ``--metrics`` is served, opened before privileges are dropped."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from smtpd_fork.config import SettingError
from smtpd_fork.errors import ConfigError
from smtpd_fork.listeners import bind_all, parse_address

if TYPE_CHECKING:
    from smtpd_fork.config import DaemonConfig
    from smtpd_fork.listeners import Address, Listener

__all__ = ["metrics_address", "open_metrics"]

BACKLOG = 64
"""Who is not answered at once waits here; past it the kernel does not answer."""

LIBRARIES = ("aiohttp", "prometheus_client")


def metrics_address(text: str) -> Address:
    """Return where to serve: ``HOST:PORT``, ``[V6]:PORT`` or ``unix:PATH``.

    :raises SettingError: *text* is none of them
    """
    try:
        address = parse_address(text)
    except SettingError as error:
        raise SettingError("metrics", text, error.reason) from None
    if address.scheme != "smtp" or text.startswith("smtp:"):
        raise SettingError("metrics", text, "HTTP is spoken there, and nothing else")
    if address.path is None and address.port is None:
        raise SettingError("metrics", text, "write HOST:PORT, [V6]:PORT or unix:PATH")
    return address


def open_metrics(config: DaemonConfig) -> list[Listener]:
    """Bind where *config* has metrics served; nowhere is an empty list.

    :raises SettingError: the address cannot be read
    :raises ConfigError: a library is not installed, or the host does not resolve
    :raises SmtpdForkError: it cannot be bound, see :func:`smtpd_fork.listeners.bind_all`
    """
    if config.metrics is None:
        return []
    address = metrics_address(config.metrics)
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"metrics on {config.metrics} need {' and '.join(missing)}: "
            "pip install 'smtpd-fork[metrics]'"
        )
    return bind_all([address], backlog=BACKLOG, socket_mode=config.socket_mode)
