"""Limits for stock aiosmtpd: ``gate.wrap()`` in a subclass of Controller.

Run it, and open three connections from one address:

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
    """aiosmtpd's Controller with the limits of a gate.

    :param gate: the gate; several controllers can share one
    """

    def __init__(self, handler: Any, *, gate: Gate, **options: Any) -> None:
        super().__init__(handler, **options)
        self.gated = gate.wrap(super().factory)

    def factory(self) -> Any:  # aiosmtpd's annotation is SMTP, but gate.wrap() returns a protocol
        """Return the protocol of one connection."""
        return self.gated()


def main() -> None:
    """Serve until interrupted."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8025
    gate = Gate(limit_connections=100, max_from_ip=2)
    controller = GatedController(Debugging(), gate=gate, hostname="127.0.0.1", port=port)
    controller.start()
    print(f"port {port}, {gate.limits}; stop with Ctrl-C", flush=True)
    try:
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    finally:
        controller.stop()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    main()
