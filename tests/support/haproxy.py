"""haproxy in front of a server."""

from __future__ import annotations

import asyncio
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from support.peers import peer
from support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


CONFIG = """\
global
    maxconn 200
defaults
    mode tcp
    timeout connect 5s
    timeout client 20s
    timeout server 20s
listen mail
    bind 127.0.0.1:{port}
    server one 127.0.0.1:{backend} {send} {check}
"""


@asynccontextmanager
async def haproxy(folder: Path, backend: int, send: str, check: str = "") -> AsyncIterator[int]:
    """Run haproxy in front of *backend*; yields its port."""
    port = free_port()
    config = folder / "haproxy.cfg"
    config.write_text(CONFIG.format(port=port, backend=backend, send=send, check=check))
    with subprocess.Popen(
        [peer("haproxy"), "-db", "-f", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            async with asyncio.timeout(20):
                while True:
                    try:
                        _, writer = await asyncio.open_connection("127.0.0.1", port)
                        break
                    except OSError:
                        assert process.poll() is None
                        await asyncio.sleep(0.02)
            writer.close()
            yield port
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait, 20)
