"""Kills the daemon at random during deliveries; clients repeat each message without a reply 250.

This shows that a sink loses no message that was answered 250, and how often it stores one twice.
"""

from __future__ import annotations

import asyncio
import random
import smtplib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from support.daemon import Daemon
from support.mail import mail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from smtpd_fork.sinks import Sink
    from support.peer_server import PeerServer


def body(name: str) -> bytes:
    return f"Subject: {name}\r\n\r\n{name * 100}\r\n".encode()


def deliver_and_kill(
    *options: str, cwd: Path, rounds: int = 3, messages: int = 60, clients: int = 4
) -> list[str]:
    """Return the names of the messages, all of which were finally answered 250.

    :param options: of the daemon
    """
    names = [f"message-{number}" for number in range(messages)]
    left = list(names)
    for number in range(rounds):
        left = _deliver(left, *options, cwd=cwd, clients=clients, kill=number < rounds - 1)
    assert left == []
    return names


def assert_once(names: Iterable[str], stored: Iterable[bytes]) -> None:
    """Check that the messages of these names are stored, each once, and no others."""
    found = sorted(content.partition(b"Subject: ")[2] for content in stored)
    assert found == sorted(body(name).removeprefix(b"Subject: ") for name in names)


async def kill_server_under_load(
    sink: Sink, server: PeerServer, *, messages: int = 200
) -> set[bytes]:
    """Kill a sink's server during deliveries, and restart it; repeat each message not accepted.

    :returns: the contents, all of which were finally answered 250
    """
    contents = {b"Subject: %d\r\n\r\nhello\r\n" % number for number in range(messages)}
    left, taken = set(contents), set[bytes]()

    async def deliver(content: bytes) -> None:
        if str(await sink.deliver(mail(content))).startswith("250"):
            taken.add(content)

    first = [asyncio.create_task(deliver(content)) for content in left]
    while len(taken) < random.randint(1, messages // 4):
        await asyncio.sleep(0)
    server.kill()
    await asyncio.gather(*first)
    assert taken != contents
    server.start()
    async with asyncio.timeout(30):
        while left := contents - taken:
            await asyncio.gather(*(deliver(content) for content in left))
            await asyncio.sleep(0.01)
    return contents


def _deliver(names: list[str], *options: str, cwd: Path, clients: int, kill: bool) -> list[str]:
    """Deliver messages; return those that were not answered 250."""
    waiting, answered = list(reversed(names)), set[str]()
    lock = threading.Lock()

    def client(port: int) -> None:
        try:
            with smtplib.SMTP("127.0.0.1", port, timeout=20) as smtp:
                while True:
                    with lock:
                        if not waiting:
                            return
                        name = waiting.pop()
                    smtp.sendmail("a@example.com", ["b@example.com"], body(name))
                    answered.add(name)
        except (OSError, smtplib.SMTPException):
            return  # The daemon has been killed.

    with Daemon("-l", "127.0.0.1:0", *options, cwd=cwd) as daemon:
        with ThreadPoolExecutor(clients) as pool:
            for _ in range(clients):
                pool.submit(client, daemon.port)
            if kill:
                while len(answered) < min(5, len(names)):
                    time.sleep(0.001)
                time.sleep(random.uniform(0, 0.02))
                daemon.process.kill()
    return [name for name in names if name not in answered]


def load_until_killed(
    daemon: Daemon,
    *,
    text: Callable[[str], str] = "Subject: {0}\r\n\r\nx\r\n".format,
    to: Callable[[int], list[str]] = lambda _: ["b@example.com"],
    clients: int = 8,
    enough: int = 150,
) -> list[str]:
    """Deliver with all clients until *enough* messages were answered 250, and kill the daemon.

    :param text: returns the message of a key, ``CLIENT-NUMBER``
    :param to: returns the recipients of a client
    :returns: the keys of the messages that were answered 250
    """
    answered: list[str] = []
    reached = threading.Event()

    def load(client: int) -> None:
        with suppress(OSError, smtplib.SMTPException):
            with smtplib.SMTP("127.0.0.1", daemon.port, timeout=20) as smtp:
                for number in range(10_000):
                    key = f"{client}-{number}"
                    smtp.sendmail("a@example.com", to(client), text(key))
                    answered.append(key)
                    if len(answered) > enough:
                        reached.set()

    workers = [threading.Thread(target=load, args=[client]) for client in range(clients)]
    for worker in workers:
        worker.start()
    assert reached.wait(40)
    daemon.process.kill()
    for worker in workers:
        worker.join()
    return answered
