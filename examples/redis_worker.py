"""A worker for messages that the handler redis has added to a stream.

    python examples/redis_worker.py redis://127.0.0.1:6379 STREAM DIRECTORY [IDLE_SECONDS]

Start as many as you like: each message goes to one of them. A worker that is killed loses nothing:
another one claims its message after IDLE_SECONDS (60; more than any work takes). So a message may
be processed twice; process() has to be idempotent, and here it is.
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
"""A message that no worker can process goes to the stream STREAM:failed then."""


def process(directory: Path, key: str, envelope: dict[str, Any], content: bytes) -> None:
    """Do the work: here, write the message to a file."""
    unfinished = directory / f".{key}.{os.getpid()}"
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(directory / f"{key}.eml")  # whole or not there; a second time changes nothing
    recipients = ", ".join(envelope["recipients"])
    print(ascii(f"from {envelope['sender']} to {recipients}: {key}"), flush=True)


class Worker:
    """Takes messages from a stream, one at a time."""

    def __init__(self, url: str, stream: str, directory: Path, idle: float) -> None:
        # Longer than the wait for messages below; without it a silent server is waited for forever.
        self._redis = redis.Redis.from_url(url, socket_timeout=30)
        self._stream = stream
        self._directory = directory
        self._idle = int(idle * 1000)
        self._name = f"{socket.gethostname()}-{os.getpid()}"
        try:
            self._redis.xgroup_create(stream, GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):  # another worker was first
                raise

    def step(self) -> None:
        """Process a message that another worker has left; else a new one, if one comes soon."""
        names = (self._stream, GROUP, self._name)
        claimed: Any = self._redis.xautoclaim(*names, min_idle_time=self._idle, count=1)
        entries = claimed[1]
        if not entries:
            block = min(self._idle, 5000) or 1  # 0 would wait forever, and never claim
            news: Any = self._redis.xreadgroup(*names[1:], {self._stream: ">"}, 1, block)
            entries = news[0][1] if news else []
        for entry_id, fields in entries:
            self._finish(entry_id, fields)

    def _finish(self, entry_id: bytes, fields: dict[bytes, bytes]) -> None:
        try:
            envelope = json.loads(fields[b"envelope"])
            process(self._directory, envelope["key"], envelope, fields[b"content"])
        except Exception as error:  # noqa: BLE001 - whatever it is, other messages go on
            print(f"{entry_id!r}: {error!r}", file=sys.stderr, flush=True)
            (state,) = self._redis.xpending_range(self._stream, GROUP, entry_id, entry_id, 1)
            if int(state["times_delivered"]) < MOST_TRIES:
                return  # it is claimed again after a while
            self._redis.xadd(f"{self._stream}:failed", dict(fields.items()))
        # Only now, and both at once: the message is done, and takes no memory any more.
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
