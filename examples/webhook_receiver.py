"""A web application that receives mail from the handler webhook.

    WEBHOOK_SECRET=whsec_... python examples/webhook_receiver.py 127.0.0.1:8080 DIRECTORY

It verifies the signature (standardwebhooks.com) and stores each message as a file. A message that
is sent again has the same webhook-id, and is not stored again. The application answers 204 only
when the file is on the disk.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
import sys
import time
from pathlib import Path
from tempfile import NamedTemporaryFile

from aiohttp import web

LARGEST = 50 << 20
"""Bytes of a message; more than --max-message-size of the server."""

TOLERANCE = 300
"""Maximum age of a request in seconds, so that an attacker cannot replay recorded requests."""


def is_signed(headers: dict[str, str], body: bytes, secret: str) -> bool:
    """Return whether a signature is valid; during a change of secrets a request has several."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    wanted = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    given = headers["webhook-signature"].split(" ")
    return any(hmac.compare_digest(wanted.encode(), each.encode()) for each in given)


def store(directory: Path, key: str, content: bytes) -> bool:
    """Write a message to the disk; return False if it is stored already."""
    path = directory / f"{key}.eml"
    if path.exists():
        return False
    with NamedTemporaryFile(dir=directory, prefix=".", delete=False) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).rename(path)  # atomic
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True


def application(secret: str, directory: Path) -> web.Application:
    """Return the application; it answers POST on all paths."""

    async def receive(request: web.Request) -> web.Response:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            age = abs(time.time() - int(headers["webhook-timestamp"]))
            genuine = age <= TOLERANCE and is_signed(headers, body, secret)
        except (KeyError, ValueError):  # a field is missing, or is not a number
            genuine = False
        if not genuine:
            return web.Response(status=401)  # smtpd-fork answers 451, so no message is lost
        key = headers["webhook-id"]
        if not key.isalnum():
            return web.Response(status=400)
        if await asyncio.to_thread(store, directory, key, body):
            # The values are percent-encoded, so that an address cannot forge log lines.
            print(f"from {headers['x-mail-from']} to {headers['x-mail-to']}: {key}", flush=True)
        return web.Response(status=204)

    app = web.Application(client_max_size=LARGEST)
    app.router.add_post("/{path:.*}", receive)
    return app


def main() -> None:
    """Serve until SIGTERM."""
    host, _, port = sys.argv[1].rpartition(":")
    directory = Path(sys.argv[2])
    directory.mkdir(parents=True, exist_ok=True)
    app = application(os.environ["WEBHOOK_SECRET"], directory)
    web.run_app(app, host=host, port=int(port), print=None, access_log=None)


if __name__ == "__main__":
    main()
