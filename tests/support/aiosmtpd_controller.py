"""aiosmtpd's own server, in a thread: a sink also has to work in it."""

from __future__ import annotations

import asyncio
import smtplib
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aiosmtpd.controller import Controller

from support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_fork.sinks import Sink


@contextmanager
def client_of_aiosmtpd(sink: Sink) -> Iterator[smtplib.SMTP]:
    """Serve *sink* with aiosmtpd's Controller, and yield a client; at the end close both."""
    sink.prepare()
    port = free_port("127.0.0.1")
    controller = Controller(sink, "127.0.0.1", port, server_hostname="mx.example.com")
    controller.start()
    try:
        with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
            yield client
        asyncio.run_coroutine_threadsafe(sink.close(), controller.loop).result(20)
    finally:
        controller.stop()
