"""A handler imports all modules when it is loaded: later USER may not be able to read them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from importlib import import_module, reload
from typing import TYPE_CHECKING, Any

import pytest
from support.http_app import App, running
from support.nameserver import name_server
from support.nats_server import NatsServer
from support.redis_server import RedisServer
from support.s3_server import ACCESS, S3Server

from smtpd_fork import Server, filters, sinks
from smtpd_fork.errors import MissingLibraryError
from smtpd_fork.handlers.load import BUILT_IN
from smtpd_fork.testing import Mailbox

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import asyncio, json, sys
from smtpd_fork.cli.start import _import_before_privileges_are_dropped
from smtpd_fork.config import DaemonConfig
from smtpd_fork.handlers import load_handlers
from smtpd_fork.message import Mail, Recipient

config = DaemonConfig.build({"handler": json.loads(sys.argv[1]), "loop": "asyncio"})
chain = load_handlers(config.handler)
_import_before_privileges_are_dropped(config)
before = set(sys.modules)
chain.prepare()

CONTENT = "Subject: Gr\\u00fc\\u00dfe\\r\\n\\r\\n\\u00e4\\r\\n".encode()
TRACE = b"Received: from x\\r\\n"


def mail(address, **more):
    return Mail("1-1", "a@b.example", (Recipient(address),), CONTENT, trace=TRACE, **more)


async def main():
    [sink] = chain.sinks.values()
    answers = [
        await sink.deliver(mail("b@example.com")),
        await sink.deliver(mail("b@m\\u00fcnchen.example", utf8=True)),
    ]
    await chain.close()
    print(json.dumps([answers, sorted(set(sys.modules) - before)]))


asyncio.run(main())
"""


async def imported_late(*handlers: Any) -> tuple[Any, list[str]]:
    """Return the reply of a sink in another process, and the modules that it imports late."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(handlers)]
    ended = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 0, ended.stderr
    answers, modules = json.loads(ended.stdout.splitlines()[-1])
    return answers, modules


@pytest.mark.parametrize("kind", ["maildir", "mbox", "pipe"])
async def test_final_delivery(kind: str, tmp_path: Path) -> None:
    handlers = {
        "maildir": {"use": "maildir", "path": f"{tmp_path}/{{domain}}/{{user}}"},
        "mbox": {"use": "mbox", "path": f"{tmp_path}/{{user}}"},
        "pipe": {"use": "pipe", "command": "true"},
    }
    answers, modules = await imported_late(handlers[kind])
    assert "250" in str(answers)
    assert modules == []


def test_the_class_of_each_built_in_handler_is_public() -> None:
    for path in BUILT_IN.values():
        module, _, kind = path.partition(":")
        public = filters if ".filters." in path else sinks
        assert kind in public.__all__
        assert getattr(public, kind) is getattr(import_module(module), kind)
    assert not hasattr(sinks, "Sinks")


@pytest.mark.parametrize("kind", ["lmtp", "relay"])
async def test_next_hop(kind: str) -> None:
    scheme = "lmtp:" if kind == "lmtp" else ""
    async with Server(Mailbox(), listen=[f"{scheme}127.0.0.1:0"]) as server:
        entry = {"use": kind, "address": f"127.0.0.1:{server.port}"}
        answers, modules = await imported_late(entry)
    assert "250" in str(answers)
    assert modules == []


async def test_relay_by_mx() -> None:
    async with (
        name_server() as names,
        Server(Mailbox(), listen=["127.0.0.1:0"]) as server,
    ):
        names.records["example.com", "MX"] = "10/mx.example.com"
        names.records["mx.example.com", "A"] = "127.0.0.1"
        address = f"mx:example.com:{server.port}"
        entry = {"use": "relay", "address": address, "dns-server": names.address}
        answers, modules = await imported_late(entry)
    assert "250" in str(answers)
    assert modules == []


@pytest.mark.parametrize("form", ["raw", "json"])
async def test_webhook(form: str) -> None:
    async with running(App()) as app:
        answers, modules = await imported_late({"use": "webhook", "url": app.url, "format": form})
    assert "250" in str(answers)
    assert modules == []


@pytest.mark.peers
async def test_redis() -> None:
    with RedisServer() as server:
        answers, modules = await imported_late({"use": "redis", "url": server.url})
    assert "250" in str(answers)
    assert modules == []


@pytest.mark.peers
async def test_nats() -> None:
    with NatsServer() as server:
        await server.add_stream()
        answers, modules = await imported_late({"use": "nats", "url": server.url})
    assert "250" in str(answers)
    assert modules == []


@pytest.mark.peers
async def test_s3() -> None:
    server = S3Server()
    try:
        facts = {key.replace("_", "-"): value for key, value in ACCESS.items()}
        entry = {"use": "s3", "bucket": "mail", "endpoint": server.url, **facts}
        answers, modules = await imported_late(entry)
    finally:
        server.stop()
    assert "250" in str(answers)
    assert modules == []


@pytest.mark.parametrize(
    ("kind", "hidden", "argument"),
    [
        ("nats.Nats", ["nats", "nats.js", "nats.js.errors"], "nats://127.0.0.1"),
        ("redis.Redis", ["redis", "smtpd_fork.redis_connections"], "redis://127.0.0.1"),
        ("s3.S3", ["obstore"], "mail"),
    ],
)
def test_a_library_that_is_not_installed_is_named(
    kind: str, hidden: list[str], argument: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, cls = kind.partition(".")
    module = import_module(f"smtpd_fork.sinks.{name}")
    for each in hidden:
        monkeypatch.setitem(sys.modules, each, None)
    reload(module)
    try:
        with pytest.raises(MissingLibraryError, match=rf"pip install 'smtpd-fork\[{name}\]'"):
            getattr(module, cls)(argument)
    finally:
        monkeypatch.undo()
        reload(module)


@pytest.mark.parametrize("options", [{}, {"recipients": "map"}])
def test_accept(options: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "map").write_text(
        "b@example.com OK\n/x+y/i REJECT no\n@m\u00fcnchen.example c@d.example\n"
    )
    options = {key: str(tmp_path / value) for key, value in options.items()}
    program = PROGRAM.replace("[sink] = chain.sinks.values()", "accept = chain.handlers[0]")
    begin, end = program.index("    answers = ["), program.index("    await chain.close()")
    ask = """
    from types import SimpleNamespace
    lists = {"rcpt_tos": [], "rcpt_params": [], "rcpt_options": []}
    envelope = SimpleNamespace(mail_from="a@b.example", **lists)
    session = SimpleNamespace(peer=("192.0.2.1", 1), authenticated=False, id="x")
    answers = [
        str(await accept.handle_RCPT(None, session, envelope, address, []))
        for address in ("b@example.com", "x@m\\u00fcnchen.example", '"q q"@example.com')
    ]
"""
    program = program[:begin] + ask.lstrip("\n") + program[end:]
    entry = {"use": "accept", "domains": ["example.com", "m\u00fcnchen.example"], **options}
    ended = subprocess.run(
        [sys.executable, "-c", program, json.dumps([entry, "discard"])],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1])[1] == []
