"""``python -m smtpd_fork`` is the command ``smtpd-fork``."""

import sys

from smtpd_fork.cli import main

sys.exit(main())
