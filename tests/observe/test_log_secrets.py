"""Secrets: credentials and messages are not in the log, at any level and in any format."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING

import pytest
from support.auth import LOGIN, PASSWORD, PLAIN, WRONG, b64, check, check_slowly, connected, hello
from support.logs import logging_with, objects
from support.server import greeted

from smtpd_fork.sinks import Discard, Maildir

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path
    from typing import Any

    from support.client import Client
    from support.tls import Certificates

WRONG_PASSWORD = "wr0ng-w0rd"
WRONG_PLAIN = b64(b"\0" + LOGIN + b"\0" + WRONG_PASSWORD.encode())
SECRETS = (
    *(PASSWORD.decode(), b64(PASSWORD), PLAIN, WRONG, WRONG_PLAIN),
    *(WRONG_PASSWORD, b64(WRONG_PASSWORD), b64(LOGIN), b64encode(b"\0" + LOGIN).decode()[:6]),
)

FORMS = {
    "PLAIN, right, with the command": [f"AUTH PLAIN {PLAIN}"],
    "PLAIN, wrong, with the command": [f"AUTH PLAIN {WRONG_PLAIN}"],
    "PLAIN, right, challenged": ["AUTH PLAIN", PLAIN],
    "PLAIN, wrong, challenged": ["auth plain", WRONG_PLAIN],
    "LOGIN, right, challenged": ["AUTH LOGIN", b64(LOGIN), b64(PASSWORD)],
    "LOGIN, wrong, challenged": ["AUTH LOGIN", b64(LOGIN), b64(WRONG_PASSWORD)],
    "LOGIN, right, name with the command": [f"AUTH LOGIN {b64(LOGIN)}", b64(PASSWORD)],
    "not base64": [f"AUTH PLAIN {PASSWORD.decode()}"],
    "too many words": [f"AUTH PLAIN {PLAIN} {PASSWORD.decode()}"],
    "a tab behind AUTH": [f"AUTH\tPLAIN {PLAIN}"],
    "a space before it": [f" AUTH PLAIN {PLAIN}"],
    "a mechanism that is none": [f"AUTH XOAUTH2 {PLAIN}"],
    "a command that is none": [f"XAUTH {PLAIN}"],
    "in another command's argument": [f"NOOP {PASSWORD.decode()}", f"VRFY {PLAIN}"],
    "after a refusal": ["AUTH NOSUCH", b64(LOGIN), b64(PASSWORD), PLAIN],
    "with a name that is none": [f"LOGIN {LOGIN.decode()} {PASSWORD.decode()}"],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("asking", [check, check_slowly], ids=["immediately", "slowly"])
async def test_no_log_line_has_credentials(
    form: str, log_format: str, asking: Any, tmp_path: Path, certificates: Certificates
) -> None:
    path = tmp_path / "log"
    with logging_with(log_to=str(path), log_format=log_format, log_level="debug") as log_queue:
        log_queue.begin()
        async with connected("starttls", certificates, authenticator=asking) as client:
            await hello(client)
            for line in FORMS[form]:
                await client.say(line)
    text = path.read_text()
    assert ">> " in text
    for secret in SECRETS:
        assert secret not in text


async def test_the_traceback_of_a_failed_authenticator_has_no_password(
    tmp_path: Path, certificates: Certificates
) -> None:
    """Python's traceback has lines of the code, and no values."""

    def fail(*args: Any) -> Any:
        return args[-1].nothing

    path = tmp_path / "log"
    with logging_with(log_to=str(path), log_format="json"):
        async with connected("starttls", certificates, authenticator=fail) as client:
            await hello(client)
            assert (await client.say(f"AUTH PLAIN {PLAIN}")).code == 451
    (entry,) = [entry for entry in objects(path) if "traceback" in entry]
    assert "AttributeError" in entry["traceback"]
    for secret in SECRETS:
        assert secret not in path.read_text()


MESSAGE = (
    "Subject: moonlit\r\nFrom: a@example.com\r\n\r\nmoonlit text\r\nmoonlit\r\n"
    "HELP moonlit\r\nNOOP moonlit\r\n\r\n..moonlit\r\n"
)


async def refused_and_sent(client: Client) -> None:
    """Send a message whose envelope was refused, like a client that ignores replies."""
    await client.say("DATA")
    for line in [line for line in MESSAGE.split("\r\n") if line]:
        await client.say(line)


async def chunks(client: Client) -> None:
    await client.say("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>")
    body = MESSAGE.removesuffix("\r\n")
    await client.say(f"BDAT {len(MESSAGE)} LAST\r\n{body}")


WAYS: dict[str, Callable[[Client], Awaitable[Any]]] = {
    "taken": lambda client: client.deliver(MESSAGE),
    "a bare LF in it": lambda client: client.deliver(MESSAGE + "moonlit\nmoonlit\r\n"),
    "a line too long": lambda client: client.deliver(MESSAGE + "moonlit " * 200 + "\r\n"),
    "DATA refused, and sent all the same": refused_and_sent,
    "in chunks": chunks,
    "chunks out of place": lambda client: client.say(f"BDAT {len(MESSAGE)}\r\n{MESSAGE}"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("sink", ["discard", "maildir"])
async def test_no_log_line_has_a_part_of_a_message(
    way: str, log_format: str, sink: str, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    handler: Any = Discard()
    if sink == "maildir":
        handler = Maildir(tmp_path / "mail")
        handler.prepare()
    with logging_with(log_to=str(path), log_format=log_format, log_level="debug") as log_queue:
        log_queue.begin()
        async with greeted(handler) as client:
            await WAYS[way](client)
    text = path.read_text()
    assert ">> " in text
    assert "moonlit" not in text
    if way == "taken" and sink == "maildir":
        (stored,) = (tmp_path / "mail/new").iterdir()
        assert "moonlit" in stored.read_text()


async def test_commands_are_logged_at_debug_and_of_other_data_only_the_length(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log"
    with logging_with(log_to=str(path), log_format="json", log_level="debug"):
        async with greeted(Discard()) as client:
            for line in ("MAIL FROM:<a@b.c> SIZE=5", "rcpt to:<d@e.f>", "NOOP x", "Hello there"):
                await client.say(line)
    said = [e["message"].partition(" >> ")[2] for e in objects(path) if " >> " in e["message"]]
    assert said == [
        "'EHLO client.example'",
        "'MAIL FROM:<a@b.c> SIZE=5'",
        "'rcpt to:<d@e.f>'",
        "NOOP ...",
        "(11 octets, not a command)",
    ]
