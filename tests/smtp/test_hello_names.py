"""The name in HELO, EHLO and LHLO may be any bytes, and can be shown everywhere."""

from __future__ import annotations

import json
import logging
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.control import CONTROL, ask, says
from support.daemon import PATIENCE, Daemon
from support.handlers import Notes
from support.logs import logging_with, objects
from support.server import serve
from support.status import watched

from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from pathlib import Path

NAMES = {
    b"caf\xe9": r"caf\xe9",
    b"\xc4\xd6\xdc.example": r"\xc4\xd6\xdc.example",
    "café".encode(): "café",
    b"\xff\xfe": r"\xff\xfe",
    b"\xed\xa0\x80": r"\xed\xa0\x80",
    b"\xc3": r"\xc3",
    b"<script>": "<script>",
    "\u202e\u2028\x85x".encode(): "\u202e\u2028\x85x",
    b"\x1b[2J\x7f": "\x1b[2J\x7f",
    b'a"b': 'a"b',
    b"two words": "two words",
    b"%s {} \\": "%s {} \\",
}
"""The name that a client sends, and the value of session.host_name."""


@pytest.mark.parametrize("verb", ["EHLO", "HELO", "LHLO"])
@pytest.mark.parametrize("utf8", [True, False])
async def test_any_bytes_are_a_valid_name(verb: str, utf8: bool) -> None:
    names: list[str] = []

    class Keep(Discard):
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            names.append(session.host_name)
            return f"250 2.0.0 Thank you, {session.host_name!a}"

    scheme = "lmtp" if verb == "LHLO" else "smtp"
    options = {"enable_SMTPUTF8": utf8}
    async with serve(Keep(), listen=[f"{scheme}:127.0.0.1:0"], session_options=options) as server:
        for name in NAMES:
            async with await Client.to(server.addresses[0]) as client:
                await client.reply()
                client.send(verb.encode() + b" " + name + b"\r\n")
                assert (await client.reply()).code == 250
                assert (await client.deliver()).code == 250
    ascii_only = {name: name.decode("ascii", "backslashreplace") for name in NAMES}
    assert names == list((NAMES if utf8 else ascii_only).values())
    for text in names:
        text.encode()  # whatever a handler does with it


async def test_the_status_page_shows_any_name() -> None:
    async with watched(Notes()) as status:
        for name in NAMES:
            client = await Client.to(status.server.addresses[0])
            await client.reply()
            client.send(b"EHLO " + name + b"\r\n")
            await client.reply()
            await client.close()
        async with await Client.to(status.server.addresses[0]) as client:
            await client.reply()
            client.send(b"EHLO caf\xe9<b>\r\n")
            await client.reply()
            page = await status.get("/", accept="text/html")
            told = json.loads((await status.get("/status.json")).body)
        assert page.status == 200
        assert r"caf\xe9&lt;b&gt;" in page.body
        assert r"caf\xe9<b>" in {each["helo"] for each in told["oldest_sessions"]}


HANDLER = """
from aiosmtpd.smtp import MISSING


class Says:
    async def handle_MAIL(self, server, session, envelope, address, options):
        print(f"print {session.host_name}", flush=True)
        return MISSING

    async def handle_RCPT(self, server, session, envelope, address, options):
        envelope.rcpt_tos.append(address)
        return f"250 2.1.5 For {session.host_name}"
"""


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_handlers_and_the_control_socket_show_any_name(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "ours.py").write_text(HANDLER)
    names = [name for name, text in NAMES.items() if encoding == "utf-8" or text.isascii()]
    options = ("-l", "127.0.0.1:0", "--handler", "ours:Says", "--handler", "debug", *CONTROL)
    environment = {"PYTHONIOENCODING": encoding}
    with (
        Daemon(*options, "--log-level", "debug", cwd=tmp_path, environment=environment) as daemon,
        ExitStack() as held,
    ):
        for name in names:
            sock = socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE)
            held.enter_context(sock)
            lines = held.enter_context(sock.makefile("rb"))
            for command, code in (
                (b"", b"220"), (b"HELO " + name, b"250"),
                (b"MAIL FROM:<a@b.c>", b"250"), (b"RCPT TO:<d@e.f>", b"250"),
                (b"DATA", b"354"), (b"x\r\n.", b"250"),
            ):  # fmt: skip
                sock.sendall(command and command + b"\r\n")
                reply = lines.readline()
                assert reply.startswith(code), (name, command, reply)
        told = {each["helo"] for each in ask(tmp_path, "sessions")["sessions"]}
        assert len(told) == len(names)
        assert r"caf\xe9" in told
        assert r"caf\xe9" in says(tmp_path, "sessions")
        assert "Traceback" not in daemon.log


async def test_the_json_log_contains_any_name(tmp_path: Path) -> None:
    class Says(Discard):
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            about = {"who": session.host_name}
            logging.getLogger("says").info("from %s", session.host_name, extra=about)
            return "250 2.0.0 Ok"

    path = tmp_path / "log"
    with logging_with(log_to=str(path), log_format="json", log_level="debug"):
        async with serve(Says()) as server:
            for name in NAMES:
                async with await Client.to(server.addresses[0]) as client:
                    await client.reply()
                    client.send(b"EHLO " + name + b"\r\n")
                    await client.reply()
                    await client.deliver()
    said = [each for each in objects(path) if each["logger"] == "says"]
    assert [each["message"] for each in said] == [f"from {text}" for text in NAMES.values()]
    assert [each["extra"]["who"] for each in said] == list(NAMES.values())
