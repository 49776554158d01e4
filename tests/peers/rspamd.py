"""rspamd as a process, with a Redis and a DNS server, and messages through it."""

from __future__ import annotations

import asyncio
import base64
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from support.client import Client
from support.dkim import DkimKey
from support.handlers import Collect, check_password
from support.nameserver import NameServer, name_server, txt
from support.peers import needs_root, peers
from support.ports import free_ports
from support.redis_server import RedisServer
from support.server import serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_fork.filters import Filter

PATIENCE = 150.0

CONF = """
.include "$CONFDIR/common.conf"
options {{
  pidfile = "{folder}/pid"; rundir = "{folder}";
  .include "$CONFDIR/options.inc"
  .include(priority=1,duplicate=merge) "$LOCAL_CONFDIR/local.d/options.inc"
}}
logging {{ type = "console"; level = "info"; }}
worker "normal" {{
  bind_socket = "127.0.0.1:{normal}"; bind_socket = "{folder}/worker mode=0666"; count = 1;
}}
worker "controller" {{
  bind_socket = "127.0.0.1:{controller}"; count = 1; password = "hunter2"; secure_ip = [];
}}
worker "rspamd_proxy" {{
  bind_socket = "127.0.0.1:{proxy}"; milter = yes; count = 1; timeout = 60s;
  upstream "local" {{ default = yes; hosts = "127.0.0.1:{normal}"; }}
}}
redis {{ servers = "127.0.0.1:{redis}"; }}
"""

OPTIONS = """
tempdir = "{folder}"; control_socket = "{folder}/control mode=0600"; enable_test_patterns = true;
dns {{ nameserver = ["{dns}"]; timeout = 0.5s; retransmits = 2; }}
"""

LOCAL = {
    "actions": "greylist = 40; add_header = 60; rewrite_subject = 80; reject = 100;",
    "milter_headers": 'use = ["authentication-results"]; skip_local = false;',
    "greylist": "timeout = 2s; expire = 60s;",
    "dmarc": 'actions = {{ reject = "reject"; quarantine = "add header"; }}',
    "dkim_signing": (
        "sign_authenticated = true; allow_username_mismatch = true; check_pubkey = false;"
        'domain {{ example.com {{ path = "{folder}/key"; selector = "k"; }} }}'
    ),
    "multimap": (
        'GREY {{ type = "from"; filter = "email:domain"; map = ["grey.example"]; score = 45; }}'
    ),
}

GTUBE = "{}JS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"

CLIENT, STRANGER = "203.0.113.5", "203.0.113.66"


class Peer(NamedTuple):
    """rspamd, with its DNS server."""

    normal: str
    unix: str
    controller: str
    milter: str
    key: DkimKey


@contextmanager
def name_server_in_thread() -> Iterator[NameServer]:
    found: list[NameServer] = []
    ready, end = threading.Event(), threading.Event()

    async def run() -> None:
        async with name_server() as server:
            found.append(server)
            ready.set()
            await asyncio.to_thread(end.wait)

    thread = threading.Thread(target=asyncio.run, args=[run()])
    thread.start()
    ready.wait(PATIENCE)
    try:
        yield found[0]
    finally:
        end.set()
        thread.join()


@contextmanager
def running_rspamd() -> Iterator[Peer]:
    """Run rspamd; the DNS knows the records of example.com and example.net."""
    needs_root()
    program, _ = peers("rspamd", "redis-server")
    folder = Path(tempfile.mkdtemp(prefix="rspamd-", dir="/tmp"))
    (folder / "local.d").mkdir()
    for name, text in LOCAL.items():
        (folder / "local.d" / f"{name}.conf").write_text(text.format(folder=folder))
    key = DkimKey("example.com")
    (folder / "key").write_text(key.private)
    normal, controller, proxy = free_ports(3)
    try:
        with name_server_in_thread() as dns, RedisServer() as redis:
            text = CONF.format(
                folder=folder, normal=normal, controller=controller, proxy=proxy, redis=redis.port
            )
            (folder / "conf").write_text(text)
            dns.records |= records(key)
            options = OPTIONS.format(folder=folder, dns=dns.address)
            (folder / "local.d/options.inc").write_text(options)
            command = [program, "-f", "-i", "-c", f"{folder}/conf", f"--var=DBDIR={folder}"]
            command += [f"--var=LOCAL_CONFDIR={folder}"]
            with (folder / "log").open("ab") as log:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder
                )
            try:
                for port in (normal, controller):
                    until_it_answers(f"http://127.0.0.1:{port}/ping", process, folder)
                here = "127.0.0.1"
                urls = f"http://{here}:{normal}", f"unix:{folder}/worker"
                yield Peer(*urls, f"http://{here}:{controller}", f"{here}:{proxy}", key)
            finally:
                process.terminate()
                process.wait(PATIENCE)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def records(key: DkimKey) -> dict[tuple[str, str], str | None]:
    """Return the DNS records: SPF of two domains, and DKIM and DMARC of one."""
    return {
        ("example.com", "TXT"): txt(f"v=spf1 ip4:{CLIENT} -all"),
        ("_dmarc.example.com", "TXT"): txt("v=DMARC1; p=reject"),
        ("example.net", "TXT"): txt(f"v=spf1 ip4:{CLIENT} -all"),
        (key.name, "TXT"): txt(key.record),
    }


def until_it_answers(url: str, process: subprocess.Popen[bytes], folder: Path) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            assert answer.read().strip() == b"pong"
            return
        said = (folder / "log").read_text(errors="replace")[-2000:]
        assert process.poll() is None, said
        assert time.monotonic() < end, said
        time.sleep(0.05)


def letter(sender: str = "bob@example.com", body: str = "hello", *more: str) -> bytes:
    lines = [
        *more, f"From: Bob <{sender}>", "To: <carol@example.org>", "Subject: x",
        "Date: Fri, 27 Nov 2026 12:00:00 +0000", f"Message-ID: <{time.monotonic_ns()}@example.com>",
        "MIME-Version: 1.0", "Content-Type: text/plain; charset=utf-8", "", body, "",
    ]  # fmt: skip
    return "\r\n".join(lines).encode()


LOGIN = base64.b64encode(b"\0bob\0pass").decode()


async def through(
    judge: Filter,
    content: bytes,
    *,
    sender: str = "bob@example.com",
    client: str = CLIENT,
    login: bool = False,
) -> tuple[str, bytes]:
    """Send a message through rspamd; return the reply, and the stored messages."""
    kept = Collect()
    options: dict[str, Any] = {
        "listen": ["smtp+proxy:127.0.0.1:0"],
        "proxy_trust": ["127.0.0.1"],
        "session_options": {"authenticator": check_password, "auth_require_tls": False},
    }
    async with (
        serve([judge, kept], **options) as server,
        await Client.to(server.addresses[0]) as smtp,
    ):
        smtp.send(f"PROXY TCP4 {client} 127.0.0.1 40312 25\r\n")
        await smtp.greet("mail.example.com")
        if login:
            assert (await smtp.say(f"AUTH PLAIN {LOGIN}")).code == 235
        begun = (f"MAIL FROM:<{sender}>", "RCPT TO:<carol@example.org>", "DATA")
        assert (await smtp.say(*begun)).code == 354
        smtp.writer.write(content + b".\r\n")
        reply = await smtp.reply()
    return f"{reply.code} {reply.text}", b"".join(kept.messages)
