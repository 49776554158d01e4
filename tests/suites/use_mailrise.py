"""mailrise in use: mail becomes notifications; test_suites.py runs this with each session."""

from __future__ import annotations

import json
import logging
import smtplib
import socket
import threading
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import StringIO
from typing import TYPE_CHECKING

import pytest
from aiosmtpd.controller import Controller
from mailrise.config import load_config  # type: ignore[import-not-found]  # only there
from mailrise.smtp import AppriseHandler  # type: ignore[import-not-found]  # only there

if TYPE_CHECKING:
    from collections.abc import Iterator

MESSAGE = "Subject: the door\r\nFrom: a@example.org\r\n\r\nit is open\r\n"


class Receiver(HTTPServer):
    """A server for notifications of Apprise's json://."""

    def __init__(self, status: int) -> None:
        super().__init__(("127.0.0.1", 0), Post)
        self.status = status
        self.received: list[dict[str, str]] = []


class Post(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append(json.loads(body))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        pass


@contextmanager
def mailrise(status: int) -> Iterator[tuple[smtplib.SMTP, Receiver]]:
    with Receiver(status) as receiver:
        thread = threading.Thread(target=receiver.serve_forever)
        thread.start()
        url = f"json://127.0.0.1:{receiver.server_address[1]}/"
        text = f"configs:\n  home:\n    urls:\n      - {url}\n"
        config = load_config(logging.getLogger("mailrise"), StringIO(text))
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            port = free.getsockname()[1]
        controller = Controller(AppriseHandler(config=config), hostname="127.0.0.1", port=port)
        controller.start()
        try:
            with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
                yield client, receiver
        finally:
            controller.stop()
            receiver.shutdown()
            thread.join()


def test_mail_becomes_a_notification() -> None:
    with mailrise(200) as (client, receiver):
        client.sendmail("a@example.org", ["home@mailrise.xyz"], MESSAGE)
    (notification,) = receiver.received
    assert notification["title"] == "the door (a@example.org)"
    assert notification["message"] == "it is open"


def test_a_notification_that_fails_is_a_temporary_error() -> None:
    with mailrise(500) as (client, _), pytest.raises(smtplib.SMTPDataError) as error:
        client.sendmail("a@example.org", ["home@mailrise.xyz"], MESSAGE)
    assert error.value.smtp_code == 450


def test_several_messages_are_sent_in_one_session() -> None:
    with mailrise(200) as (client, receiver):
        for _ in range(3):
            client.sendmail("a@example.org", ["home@mailrise.xyz"], MESSAGE)
    assert len(receiver.received) == 3
