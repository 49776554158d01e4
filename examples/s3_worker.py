"""A worker for messages that the handler s3 has stored in a bucket.

    python examples/s3_worker.py BUCKET DIRECTORY [ENDPOINT]

It processes the objects below mail/ and moves each to done/ (smtpd-fork: path=mail/{key}.eml).
Credentials are in the environment: AWS_ACCESS_KEY_ID and so on. Run one worker: a second worker
would process the same messages again. If a worker is killed, no message is lost, as an object is
moved only when it is done. So a message may be processed twice: process() must be idempotent, as it
is in this example.
"""

from __future__ import annotations

import os
import sys
import time
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import Any, NamedTuple

import obstore
from obstore.store import S3Store

WAITING, DONE, FAILED = "mail/", "done/", "failed/"
POLL_SECONDS = 5.0


class Envelope(NamedTuple):
    """Sender and recipients of a message."""

    sender: str
    recipients: list[str]


def envelope_of(content: bytes) -> Envelope:
    """Return the envelope, from the fields on top of a message up to the first Received.

    The fields below that are those of the sender, and cannot be trusted.
    """
    sender, recipients = "", []
    for name, value in BytesHeaderParser().parsebytes(content[: 1 << 20]).items():
        if name == "Received":
            break
        if name == "Return-Path":
            sender = value.strip("<>")
        elif name == "Delivered-To":
            recipients.append(value)
    return Envelope(sender, recipients)


def process(directory: Path, key: str, envelope: Envelope, content: bytes) -> None:
    """Process a message: in this example, write it to a file."""
    unfinished = directory / f".{key}.{os.getpid()}"
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(directory / key)  # atomic; a repetition changes nothing
    recipients = ", ".join(envelope.recipients)
    print(ascii(f"from {envelope.sender} to {recipients}: {key}"), flush=True)


def step(store: S3Store, directory: Path) -> int:
    """Process all messages in the bucket, and return their number."""
    count = 0
    for batch in obstore.list(store, prefix=WAITING.rstrip("/")):
        for each in batch:
            path = each["path"]
            key = path.removeprefix(WAITING)
            try:
                content = bytes(obstore.get(store, path).bytes())
            except FileNotFoundError:
                continue  # another worker has moved it
            try:
                process(directory, key.replace("/", "-"), envelope_of(content), content)
                to = DONE
            except Exception as error:  # noqa: BLE001 - other messages are processed after any error
                print(f"{key}: {error!r}", file=sys.stderr, flush=True)
                to = FAILED
            obstore.copy(store, path, to + key)  # S3 has no rename: copy, then delete
            obstore.delete(store, path)
            count += 1
    return count


def main() -> None:
    """Work until a signal ends the process."""
    bucket, directory, endpoint = [*sys.argv[1:], ""][:3]
    Path(directory).mkdir(parents=True, exist_ok=True)
    options: Any = {}
    if endpoint:
        plain = endpoint.startswith("http:")
        options = {"endpoint": endpoint, "client_options": {"allow_http": plain}}
    store = S3Store(bucket, **options)
    while True:
        if not step(store, Path(directory)):
            time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    main()
