"""The control socket: an administrator's say in a daemon that runs. See docs/control.md."""

from smtpd_fork.observe.control.administration import Administration
from smtpd_fork.observe.control.control import Control, DrainOrder, open_control

__all__ = ["Administration", "Control", "DrainOrder", "open_control"]
