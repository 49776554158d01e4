"""A fleet under load with failures. Invariant: in the pauses all counts are exact.

Four daemons share a Redis. Clients come and go from a few addresses, while Redis and the daemons
are killed, stopped and resumed, scripts and data are flushed, connections cut and settings
reloaded, at random. In each pause all nodes have to be in the fleet, Redis has to have each
session, each limit has to apply over all nodes, and without clients all counts have to be 0.
Otherwise, and after an internal error in a log, the exit status is 1.

    python tests/fuzz/fleet.py --seconds 600 [--seed N] [--loop asyncio]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.insert(0, str(Path(__file__).parents[1]))  # Needed if the file runs as a script.

from support.control import CONTROL, ask
from support.daemon import Daemon
from support.ports import free_port
from support.redis_server import RedisServer

from smtpd_fork.gate.fleet_share import KNOWN_SECONDS

NODES = 4
ROUND_SECONDS = 8.0
"""Seconds of failures before each pause in which all counts are compared."""

SETTLED_SECONDS = 20.0
"""Seconds until all nodes have to be back in the fleet, with their counts sent."""

CLIENTS = 100
ADDRESSES = [f"127.0.0.{number}" for number in range(11, 19)]
PER_CLIENT, IN_ALL = 12, 60
FRONT = "{smtpd-fork}:1:"
RESET = struct.pack("ii", 1, 0)

MESSAGE = (
    (b"EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n", b"\n354 "),
    (b"Subject: x\r\n\r\nx\r\n.\r\n", b"\n250 "),
)


class BrokenError(Exception):
    """The invariant was violated."""


class Soak:
    """A Redis, the daemons, the load and the failures.

    :ivar happened: number of failures and clients, by kind
    """

    def __init__(self, folder: Path, chance: random.Random, loop: str) -> None:
        self.folder = folder
        self.chance = chance
        self.loop = loop
        self.redis = RedisServer()
        self.ports = [free_port("127.0.0.1") for _ in range(NODES)]
        self.daemons: list[Daemon] = []
        self.happened: Counter[str] = Counter()
        self.logs: list[str] = []
        self._load = asyncio.Event()

    def node(self, number: int) -> Daemon:
        """Start a daemon."""
        folder = self.folder / f"mx{number}"
        folder.mkdir(exist_ok=True)
        (folder / "control.sock").unlink(missing_ok=True)
        return Daemon(
            *("-l", f"127.0.0.1:{self.ports[number]}", "--handler", "discard", *CONTROL),
            *("--fleet", f"unix:{self.redis.path}", "--fleet-node", f"mx{number}"),
            *("--fleet-lease", "2", "--fleet-connections", str(IN_ALL), "--loop", self.loop),
            *("-m", str(PER_CLIENT), "--max-from-net", "50/24", "--rate", "1000000/h"),
            *("--stress-timeout", "0", "--when-full", "refuse"),
            cwd=folder,
        )

    # -- load ------------------------------------------------------------------------------------

    async def client(self) -> None:
        """Run one client after another."""
        while True:
            await self._load.wait()
            try:
                async with asyncio.timeout(30):
                    await self._visit()
            except TimeoutError:
                raise BrokenError("a client was neither greeted nor refused") from None
            except (OSError, asyncio.IncompleteReadError):
                self.happened["lost"] += 1
            await asyncio.sleep(self.chance.uniform(0, 0.2))

    async def _visit(self) -> None:
        port, source = self.chance.choice(self.ports), self.chance.choice(ADDRESSES)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
        try:
            code = (await reader.readline())[:3].decode()
            self.happened[code or "closed"] += 1
            if code != "220":
                return
            if self.chance.random() < 0.3:
                for part, reply in MESSAGE:
                    writer.write(part)
                    await reader.readuntil(reply)
            await asyncio.sleep(self.chance.expovariate(4))
            if self.chance.random() < 0.3:
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        finally:
            writer.transport.abort()

    # -- faults ----------------------------------------------------------------------------------

    async def fault(self) -> None:
        """Cause one failure."""
        faults: list[Callable[[], object]] = [
            self._kill_node, self._stop_node, self._reload, self._kill_redis, self._stop_redis,
            self._command("FLUSHALL"), self._command("SCRIPT", "FLUSH"),
            self._command("CLIENT", "KILL", "TYPE", "normal"),
            self._command("CLIENT", "KILL", "TYPE", "pubsub"),
        ]  # fmt: skip
        fault = self.chance.choice(faults)
        self.happened[getattr(fault, "__name__", "")] += 1
        done = fault()
        if asyncio.iscoroutine(done):
            await done

    def _command(self, *words: str) -> Callable[[], object]:
        def command() -> None:
            with self.redis.client() as client, contextlib.suppress(Exception):
                client.execute_command(*words)

        command.__name__ = " ".join(words)
        return command

    async def _kill_node(self) -> None:
        number = self.chance.randrange(NODES)
        self.daemons[number].process.kill()
        await asyncio.sleep(self.chance.uniform(0, 3))
        await self._replace(number)

    async def _replace(self, number: int) -> None:
        old = self.daemons[number]
        await asyncio.to_thread(old.__exit__)
        self.logs.append(old.log)
        self.daemons[number] = await asyncio.to_thread(self.node, number)

    async def _stop_node(self) -> None:
        await self._pause(self.chance.choice(self.daemons).process.pid)

    async def _stop_redis(self) -> None:
        await self._pause(self.redis.process.pid)

    async def _pause(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(self.chance.choice([0.05, 0.3, 1.0, 3.0]))
        finally:
            os.kill(pid, signal.SIGCONT)

    async def _kill_redis(self) -> None:
        self.redis.kill()
        await asyncio.sleep(self.chance.uniform(0, 2))
        await asyncio.to_thread(self.redis.start)

    def _reload(self) -> None:
        self.chance.choice(self.daemons).signal(signal.SIGHUP)

    # -- the law ---------------------------------------------------------------------------------

    async def settled(self, what: str, holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + SETTLED_SECONDS
        seen: object = None
        while time.monotonic() < deadline:
            seen = await asyncio.to_thread(holds)
            if not seen:
                return
            await asyncio.sleep(0.05)
        raise BrokenError(f"{what}: {seen}")

    def _away(self) -> object:
        """Return the nodes that are not in the fleet."""
        states = [
            ask(self.folder / f"mx{number}", "status")["fleet"]["state"] for number in range(NODES)
        ]
        return [] if states == ["up"] * NODES else states

    def _counts(self) -> Counter[str]:
        counts = Counter[str]()
        with self.redis.client() as client:
            alive = set(client.zrange(f"{FRONT}nodes", 0, -1))
            for kind in "cn":
                for key in client.scan_iter(f"{FRONT}{kind}:*"):
                    for node, count in client.hgetall(key).items():
                        if node in alive:
                            counts[key.decode().removeprefix(FRONT)] += int(count)
        return counts

    def _wrong_slots(self, sessions: int) -> object:
        with self.redis.client() as client:
            pairs = [value.split() for value in client.hgetall(f"{FRONT}slots").values()]
        slots, used = (sum(int(pair[index]) for pair in pairs) for index in (0, 1))
        right = len(pairs) == NODES and used == sessions and slots <= IN_ALL
        return None if right else pairs

    async def check(self) -> None:
        """Compare all counts, without clients, with some, and at the limits."""
        await self.settled("nodes that are not in the fleet", self._away)
        await self.settled("counts are left", self._counts)
        await self.settled("slots", lambda: self._wrong_slots(0))
        await asyncio.sleep(2 * KNOWN_SECONDS)
        held: list[asyncio.StreamWriter] = []
        wanted: Counter[str] = Counter()
        try:
            for _ in range(3 * PER_CLIENT):
                source = self.chance.choice(ADDRESSES[:3])
                port = self.chance.choice(self.ports)
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", port, local_addr=(source, 0)
                )
                line = await reader.readline()
                if line.startswith(b"220"):
                    held.append(writer)
                    wanted[source] += 1
                else:
                    writer.close()
                    # A refusal without "from" is that of a node without a free slot.
                    if wanted[source] < PER_CLIENT and b"from" in line:
                        raise BrokenError(f"{source} has {wanted[source]}: {line.decode()}")
                if wanted[source] > PER_CLIENT:
                    raise BrokenError(f"{source} has {wanted[source]}")
            right = {f"c:{source}": count for source, count in wanted.items()}
            right["n:127.0.0.0/24"] = len(held)
            await self.settled(
                f"counts that are not {right}",
                lambda: None if (now := self._counts()) == right else now,
            )
            await self.settled("slots", lambda: self._wrong_slots(len(held)))
        finally:
            for writer in held:
                writer.close()
        await self.settled("counts are left", self._counts)
        await self.settled("slots", lambda: self._wrong_slots(0))

    # -- all of it -------------------------------------------------------------------------------

    async def run(self, seconds: float) -> None:
        """Run rounds of load and failures, each with a check at its end."""
        end = time.monotonic() + seconds
        clients = [asyncio.create_task(self.client()) for _ in range(CLIENTS)]
        try:
            while time.monotonic() < end:
                self._load.set()
                pause = time.monotonic() + ROUND_SECONDS
                while time.monotonic() < pause:
                    await self.fault()
                    await asyncio.sleep(self.chance.expovariate(2))
                self._load.clear()
                await self.check()
                for client in clients:
                    if client.done():
                        client.result()
                print(
                    f"{max(0, end - time.monotonic()):6.0f} s left", dict(self.happened), flush=True
                )
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)

    def __enter__(self) -> Self:
        self.redis.start()
        self.daemons = [self.node(number) for number in range(NODES)]
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in self.daemons:
            daemon.__exit__()
            self.logs.append(daemon.log)
        self.redis.__exit__()


def soak(seconds: float, seed: int, loop: str) -> Counter[str]:
    """Run the test; return the number of events by kind.

    :raises BrokenError: the invariant was violated
    """
    with tempfile.TemporaryDirectory() as folder:
        with Soak(Path(folder), random.Random(seed), loop) as running:
            try:
                asyncio.run(running.run(seconds))
            except BrokenError:
                for daemon in running.daemons:
                    print(*daemon.log.splitlines()[-15:], sep="\n", file=sys.stderr)
                raise
        for log in running.logs:
            if "Traceback" in log or "internal error" in log:
                raise BrokenError(log[-5000:])
        return running.happened


def main() -> int:
    """Run from the command line; the exit status is 1 if the invariant was violated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="uvloop")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    try:
        happened = soak(options.seconds, options.seed, options.loop)
    except BrokenError as error:
        print(f"the law does not hold: {error}", file=sys.stderr)
        return 1
    print("all counts are exact;", *(f"{name} {count}" for name, count in happened.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
