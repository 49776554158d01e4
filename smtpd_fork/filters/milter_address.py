"""The address of a milter, as this project's settings, libmilter's and Postfix's have it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from smtpd_fork.hops.address import parse_hop_address
from smtpd_fork.setting_types import SettingError

if TYPE_CHECKING:
    from smtpd_fork.hops.address import HopAddress

__all__ = ["parse_milter_address"]

_LIBMILTER = re.compile(r"inet6?:([0-9]+)@\[?([^\]@]+)\]?")


def parse_milter_address(text: str) -> HopAddress:
    """Return the address that *text* names.

    That is ``unix:PATH`` or ``HOST:PORT``; also ``local:PATH``, ``inet:PORT@HOST`` and
    ``inet6:PORT@HOST`` of libmilter, and ``inet:HOST:PORT`` of Postfix.

    :raises SettingError: *text* is no address
    """
    plain = text
    if match := _LIBMILTER.fullmatch(text):
        port, host = match.groups()
        plain = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    elif text.startswith("local:"):
        plain = f"unix:{text.removeprefix('local:')}"
    elif text.startswith(("inet:", "inet6:")):
        plain = text.partition(":")[2]
    if plain.startswith("mx:"):
        raise SettingError("address", text, "write unix:PATH or HOST:PORT")
    return parse_hop_address(plain, default_port=None)
