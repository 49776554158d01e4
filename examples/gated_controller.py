"""Limits for stock aiosmtpd: one line in a Controller, ``self.gated = gate.wrap(...)``.

Run it, and connect more than twice from one address:

    python examples/gated_controller.py 8025
"""

from __future__ import annotations

import signal
import sys
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Debugging

from smtpd_fork import Gate


class GatedController(Controller):
    """aiosmtpd's Controller behind a gate.

    :param gate: may be shared by several controllers
    """

    def __init__(self, handler: Any, *, gate: Gate, **options: Any) -> None:
        super().__init__(handler, **options)
        self.gated = gate.wrap(super().factory)

    def factory(self) -> Any:  # aiosmtpd's hint is its own SMTP
        """Return the protocol of one connection."""
        return self.gated()


def main() -> None:
    """Serve until interrupted."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8025
    gate = Gate(limit_connections=100, max_from_ip=2)
    controller = GatedController(Debugging(), gate=gate, hostname="127.0.0.1", port=port)
    controller.start()
    print(f"port {port}, {gate.limits}; Ctrl-C ends it", flush=True)
    try:
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    finally:
        controller.stop()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    main()
