"""The control socket: an administrator's say in a daemon that runs. See docs/control.md."""

from smtpd_fork.observe.control.control import Control, DrainOrder, open_control
from smtpd_fork.observe.control.protocol import (
    MAX_REPLY,
    MAX_REQUEST,
    PAGE,
    VERSION,
    Fault,
)

__all__ = [
    "MAX_REPLY",
    "MAX_REQUEST",
    "PAGE",
    "VERSION",
    "Control",
    "DrainOrder",
    "Fault",
    "open_control",
]
