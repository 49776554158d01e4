"""The control socket: requests of an administrator to a running daemon. See docs/control.md."""

from smtpd_fork.observe.control.administration import Administration
from smtpd_fork.observe.control.control import Control, DrainOrder, open_control

__all__ = ["Administration", "Control", "DrainOrder", "open_control"]
