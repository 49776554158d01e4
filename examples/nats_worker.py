"""A worker for messages that the handler nats has published.

    python examples/nats_worker.py nats://127.0.0.1:4222 SUBJECT DIRECTORY [ACK_SECONDS]

It creates the stream MAIL and its durable consumer if they do not exist. Start any number of
workers: each message goes to one of them. If a worker is killed, no message is lost: a message that
is not acknowledged within ACK_SECONDS (60; must be longer than the work takes) goes to another
worker. So a message may be processed twice: process() must be idempotent, as it is in this example.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nats
from nats.errors import TimeoutError as NoMessageError
from nats.js.api import ConsumerConfig, RetentionPolicy, StorageType
from nats.js.errors import NotFoundError

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

STREAM, CONSUMER = "MAIL", "workers"
MOST_TRIES = 5
"""Attempts to process a message; after that it stays in the stream, for an administrator."""


def process(directory: Path, key: str, envelope: dict[str, Any], content: bytes) -> None:
    """Process a message: in this example, write it to a file."""
    unfinished = directory / f".{key}.{os.getpid()}"
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(directory / f"{key}.eml")  # atomic; a repetition changes nothing
    to = ", ".join(envelope["recipients"])
    print(ascii(f"from {envelope['sender']} to {to}: {key}"), flush=True)


async def stream_of(jetstream: JetStreamContext, subject: str) -> str:
    """Return the name of the stream with the subject; create one if there is none."""
    try:
        return await jetstream.find_stream_name_by_subject(subject)
    except NotFoundError:
        await jetstream.add_stream(
            name=STREAM,
            subjects=[subject],
            storage=StorageType.FILE,
            retention=RetentionPolicy.WORK_QUEUE,  # a message is removed when it is acknowledged
            duplicate_window=86400,  # a day in which a repeated message is not stored again
        )
        return STREAM


async def finish(message: Msg, directory: Path) -> None:
    """Process a message, and acknowledge it afterwards."""
    envelope = json.loads((message.headers or {})["Mail-Envelope"])
    try:  # in a thread, so that the event loop keeps the connection alive
        await asyncio.to_thread(process, directory, envelope["key"], envelope, message.data)
    except Exception as error:  # noqa: BLE001 - other messages are processed after any error
        print(f"{envelope['id']}: {error!r}", file=sys.stderr, flush=True)
        await message.nak(delay=10)
    else:
        await message.ack_sync()


async def report(error: Exception) -> None:
    """Print an error of the connection; the library connects again."""
    print(f"NATS: {error}", file=sys.stderr, flush=True)


async def work(url: str, subject: str, directory: Path, ack_seconds: float) -> None:
    """Process messages, one at a time, until a signal ends the process."""
    async with await nats.connect(url, max_reconnect_attempts=-1, error_cb=report) as client:
        jetstream = client.jetstream()
        stream = await stream_of(jetstream, subject)
        config = ConsumerConfig(ack_wait=ack_seconds, max_deliver=MOST_TRIES)
        durable = await jetstream.pull_subscribe(subject, CONSUMER, stream, config)
        while True:
            with suppress(NoMessageError):
                for message in await durable.fetch(1, timeout=5):
                    await finish(message, directory)


def main() -> None:
    """Work until a signal ends the process."""
    url, subject, directory, seconds = [*sys.argv[1:], "60"][:4]
    Path(directory).mkdir(parents=True, exist_ok=True)
    asyncio.run(work(url, subject, Path(directory), float(seconds)))


if __name__ == "__main__":
    main()
