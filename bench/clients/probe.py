"""Connect from time to time, one connection at a time, and measure the time to the greeting."""

from __future__ import annotations

import statistics
import sys
import time

from bench.clients.dialogue import answer, connect, options, read_reply


def probe(port: int, source: str) -> float:
    """Return the seconds from before connect(2) to the greeting's last byte."""
    began = time.perf_counter()
    with connect(port, source) as sock:
        greeting = read_reply(sock)
        took = time.perf_counter() - began
        if not greeting.startswith(b"220"):
            raise ConnectionError(f"the greeting is {greeting!r}")
        sock.sendall(b"QUIT\r\n")
        while sock.recv(512):
            pass
    return took


def main() -> None:
    """Connect as many times as each line says."""
    given = options()
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            times.append(1000 * probe(given["port"], given["source"]))
            time.sleep(given["pause"])
        percentiles = statistics.quantiles(times, n=100, method="inclusive")
        answer(p50=percentiles[49], p99=percentiles[98])


if __name__ == "__main__":
    main()
