"""A worker for messages that the handler redis has added to a stream.

    python examples/redis_worker.py redis://127.0.0.1:6379 STREAM DIRECTORY [IDLE_SECONDS]

Start any number of workers: each message goes to one of them. If a worker is killed, no message is
lost: another worker claims its message after IDLE_SECONDS (60; must be longer than the work takes).
So a message may be processed twice: process() must be idempotent, as it is in this example.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import redis

GROUP = "workers"

MOST_TRIES = 5
"""Attempts to process a message; after that it goes to the stream STREAM:failed."""


def process(directory: Path, key: str, envelope: dict[str, Any], content: bytes) -> None:
    """Process a message: in this example, write it to a file."""
    unfinished = directory / f".{key}.{os.getpid()}"
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(directory / f"{key}.eml")  # atomic; a repetition changes nothing
    recipients = ", ".join(envelope["recipients"])
    print(ascii(f"from {envelope['sender']} to {recipients}: {key}"), flush=True)


class Worker:
    """Processes the messages of a stream, one at a time."""

    def __init__(self, url: str, stream: str, directory: Path, idle: float) -> None:
        # Longer than the wait for messages below. Without a timeout, a server that does not answer
        # would block the worker forever.
        self._redis = redis.Redis.from_url(url, socket_timeout=30)
        self._stream = stream
        self._directory = directory
        self._idle = int(idle * 1000)
        self._name = f"{socket.gethostname()}-{os.getpid()}"
        try:
            self._redis.xgroup_create(stream, GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):  # another worker has created it
                raise

    def step(self) -> None:
        """Process a message of a worker that was killed, or wait for a new one for some seconds."""
        names = (self._stream, GROUP, self._name)
        claimed: Any = self._redis.xautoclaim(*names, min_idle_time=self._idle, count=1)
        entries = claimed[1]
        if not entries:
            block = min(self._idle, 5000) or 1  # 0 would wait forever, and never claim messages
            news: Any = self._redis.xreadgroup(*names[1:], {self._stream: ">"}, 1, block)
            entries = news[0][1] if news else []
        for entry_id, fields in entries:
            self._finish(entry_id, fields)

    def _finish(self, entry_id: bytes, fields: dict[bytes, bytes]) -> None:
        try:
            envelope = json.loads(fields[b"envelope"])
            process(self._directory, envelope["key"], envelope, fields[b"content"])
        except Exception as error:  # noqa: BLE001 - other messages are processed after any error
            print(f"{entry_id!r}: {error!r}", file=sys.stderr, flush=True)
            (state,) = self._redis.xpending_range(self._stream, GROUP, entry_id, entry_id, 1)
            if int(state["times_delivered"]) < MOST_TRIES:
                return  # it is claimed again after a while
            self._redis.xadd(f"{self._stream}:failed", dict(fields.items()))
        # The message is done: acknowledge it and remove it from the stream, in one transaction.
        with self._redis.pipeline(transaction=True) as both:
            both.xack(self._stream, GROUP, entry_id)
            both.xdel(self._stream, entry_id)
            both.execute()


def main() -> None:
    """Work until a signal ends the process."""
    url, stream, directory, idle = [*sys.argv[1:], "60"][:4]
    Path(directory).mkdir(parents=True, exist_ok=True)
    worker = Worker(url, stream, Path(directory), float(idle))
    while True:
        try:
            worker.step()
        except redis.ConnectionError as error:
            print(f"Redis: {error}", file=sys.stderr, flush=True)
            time.sleep(1)


if __name__ == "__main__":
    main()
