"""A web application that receives mail from the handler webhook.

    WEBHOOK_SECRET=whsec_... python examples/webhook_receiver.py 127.0.0.1:8080 DIRECTORY

It verifies the signature (standardwebhooks.com) and stores each message as a file, once: a message
that is sent again has the same webhook-id. It answers 204 only when the file is on the disk.
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
"""Seconds that a request may be old: an older one may be recorded and sent again by others."""


def is_signed(headers: dict[str, str], body: bytes, secret: str) -> bool:
    """Whether one of the signatures is made with *secret*; a change of keys sends several."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    wanted = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    given = headers["webhook-signature"].split(" ")
    return any(hmac.compare_digest(wanted.encode(), each.encode()) for each in given)


def store(directory: Path, key: str, content: bytes) -> bool:
    """Write a message to the disk; return False if it is there already."""
    path = directory / f"{key}.eml"
    if path.exists():
        return False
    with NamedTemporaryFile(dir=directory, prefix=".", delete=False) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).rename(path)  # whole or not there
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
        except (KeyError, ValueError):  # a field is missing, or is no number
            genuine = False
        if not genuine:
            return web.Response(status=401)  # smtpd-fork answers 451: nothing is lost
        key = headers["webhook-id"]
        if not key.isalnum():
            return web.Response(status=400)
        if await asyncio.to_thread(store, directory, key, body):
            # Percent-coded, so that no address can forge a line of the log.
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
