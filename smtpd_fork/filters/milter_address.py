"""Parse the address of a milter, as settings of this project, libmilter and Postfix write it."""

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
    """Return the address of a milter.

    :param text: ``unix:PATH`` or ``HOST:PORT``; or libmilter's ``local:PATH``, ``inet:PORT@HOST``
        and ``inet6:PORT@HOST``; or Postfix's ``inet:HOST:PORT``
    :raises SettingError: *text* is not an address
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
