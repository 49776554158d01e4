"""Take the pictures of the status page for the README, of a daemon with clients: ``make pictures``.

A headless Chromium takes them, in the light and the dark theme, after some minutes in which clients
with addresses for documentation (RFC 5737), sent in PROXY headers, connect; some are refused.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.daemon import Daemon
from support.dialogue import connect
from support.peers import peer

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = Path(__file__).parents[2] / "docs"

WIDTH, HEIGHT = 1000, 400
"""Size of the window, CSS pixels: two columns of tables; the picture is as high as the page."""

PAUSE_SECONDS = 3.0
"""Seconds between clients: the chart has a bar for each minute."""

OPTIONS = (
    *("-l", "smtp+proxy:127.0.0.1:0", "--proxy-trust", "127.0.0.1", "--handler", "discard"),
    *("--max-from-ip", "2", "--rate", "4/m", "--deny", "203.0.113.0/24"),
    *("--metrics", "127.0.0.1:0", "--hostname", "mx.example.com", "--timeout", "1h"),
)

CLIENTS = ("192.0.2.7", "192.0.2.7", "192.0.2.7", "198.51.100.23", "203.0.113.9", "203.0.113.88")
"""Repeated clients: one over its limit of sessions, one over its rate, a network that is denied."""

STAYING = {"192.0.2.7": "relay.example.net", "198.51.100.4": "mail.example.org"}


def visit(stack: ExitStack, port: int, address: str, name: str) -> None:
    """Connect, deliver a message if that is allowed, and stay until the end of *stack*."""
    sock = stack.enter_context(connect(("127.0.0.1", port)))
    lines = stack.enter_context(sock.makefile("rb"))
    sock.sendall(f"PROXY TCP4 {address} 192.0.2.1 4711 25\r\n".encode())
    if not lines.readline().startswith(b"220"):
        return
    for command in (f"HELO {name}", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>", "DATA"):
        sock.sendall(f"{command}\r\n".encode())
        lines.readline()
    sock.sendall(b"Subject: hello\r\n\r\n.\r\n")
    lines.readline()


def clients(minutes: float) -> Iterator[str]:
    """Yield the clients of *minutes*, in the same order in each run."""
    chance = random.Random(1)
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        yield chance.choice(CLIENTS)
        time.sleep(chance.uniform(0, 2 * PAUSE_SECONDS))


def main() -> None:
    """Start a daemon, connect the clients, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="of clients; default: 5")
    parser.add_argument("--to", type=Path, default=DOCS, help="directory; default: docs")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        Daemon(*OPTIONS, cwd=Path(folder)) as daemon,
        ExitStack() as staying,
    ):
        for address, name in STAYING.items():
            visit(staying, daemon.port, address, name)
        for address in clients(arguments.minutes):
            with ExitStack() as brief:
                visit(brief, daemon.port, address, "client.example")
                visit(brief, daemon.port, address, "client.example")
        where = daemon.wait_for(r"metrics on (\S+)$")[1]
        take(f"http://{where}/", arguments.to)


def take(url: str, folder: Path) -> None:
    """Write ``status-light.png`` and ``status-dark.png``."""
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=peer("chromium"), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        for scheme in schemes:
            page = browser.new_page(
                color_scheme=scheme, viewport={"width": WIDTH, "height": HEIGHT}
            )
            page.goto(url)
            page.screenshot(path=folder / f"status-{scheme}.png", full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
