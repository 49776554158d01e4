"""The filter rspamd with rspamd itself: its actions, its header fields, SPF, DKIM and DMARC."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from support.client import Client
from support.dkim import DkimKey
from support.handlers import Collect
from support.nameserver import NameServer, name_server, txt
from support.peers import needs_root, peers
from support.ports import free_port, free_ports
from support.redis_server import RedisServer
from support.server import serve

from smtpd_fork.filters import Rspamd
from smtpd_fork.message.fields import fields, remove_fields

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.tls import Certificates

pytestmark = [pytest.mark.peers, pytest.mark.timeout(180)]

PATIENCE = 60.0

CONF = """
.include "$CONFDIR/common.conf"
options {{
  pidfile = "{folder}/pid"; rundir = "{folder}";
  .include "$CONFDIR/options.inc"
  .include(priority=1,duplicate=merge) "$LOCAL_CONFDIR/local.d/options.inc"
}}
logging {{ type = "console"; level = "info"; }}
worker "normal" {{ bind_socket = "127.0.0.1:{normal}"; count = 1; }}
worker "controller" {{
  bind_socket = "127.0.0.1:{controller}"; count = 1; password = "hunter2"; secure_ip = [];
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
    "dmarc": 'actions = { reject = "reject"; quarantine = "add header"; }',
    "multimap": (
        'GREY { type = "from"; filter = "email:domain"; map = ["grey.example"]; score = 45; }'
    ),
}

GTUBE = "{}JS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"

CLIENT, STRANGER = "203.0.113.5", "203.0.113.66"


class Peer(NamedTuple):
    """rspamd, with the DNS that it asks."""

    normal: str
    controller: str
    dns: NameServer


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


@pytest.fixture(scope="module")
def rspamd() -> Iterator[Peer]:
    needs_root()
    program, _ = peers("rspamd", "redis-server")
    folder = Path(tempfile.mkdtemp(prefix="rspamd-", dir="/tmp"))
    (folder / "local.d").mkdir()
    for name, text in LOCAL.items():
        (folder / "local.d" / f"{name}.conf").write_text(text)
    normal, controller = free_ports(2)
    try:
        with name_server_in_thread() as dns, RedisServer() as redis:
            text = CONF.format(
                folder=folder, normal=normal, controller=controller, redis=redis.port
            )
            (folder / "conf").write_text(text)
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
                yield Peer(f"http://127.0.0.1:{normal}", f"http://127.0.0.1:{controller}", dns)
            finally:
                process.terminate()
                process.wait(PATIENCE)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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


async def through(
    judge: Rspamd, content: bytes, *, sender: str = "bob@example.com", client: str = CLIENT
) -> tuple[str, bytes]:
    """Send a message through rspamd; return the reply, and what was stored."""
    kept = Collect()
    async with (
        serve(
            [judge, kept], listen=["smtp+proxy:127.0.0.1:0"], proxy_trust=["127.0.0.1"]
        ) as server,
        await Client.to(server.addresses[0]) as smtp,
    ):
        smtp.send(f"PROXY TCP4 {client} 127.0.0.1 40312 25\r\n")
        await smtp.greet("mail.example.com")
        begun = (f"MAIL FROM:<{sender}>", "RCPT TO:<carol@example.org>", "DATA")
        assert (await smtp.say(*begun)).code == 354
        smtp.writer.write(content + b".\r\n")
        reply = await smtp.reply()
    return f"{reply.code} {reply.text}", b"".join(kept.messages)


def without_added(content: bytes) -> bytes:
    """Return a message without the field that rspamd has added."""
    return remove_fields(content, "Authentication-Results")


async def test_each_action_is_taken(rspamd: Peer) -> None:
    reply, stored = await through(Rspamd([rspamd.normal]), content := letter())
    assert reply.startswith("250")
    assert without_added(stored) == content
    reply, _ = await through(Rspamd([rspamd.normal]), letter(body=GTUBE.format("X")))
    assert reply == "554 5.7.1 Gtube pattern"
    reply, stored = await through(Rspamd([rspamd.normal]), letter(body=GTUBE.format("Y")))
    assert reply.startswith("250")
    assert b"\r\nX-Spam: Yes\r\n" in stored
    reply, stored = await through(Rspamd([rspamd.normal]), letter(body=GTUBE.format("Z")))
    assert reply.startswith("250")
    assert b"\r\nSubject: *** SPAM *** x\r\n" in stored
    assert stored.count(b"Subject: ") == 1
    discarding = Rspamd([rspamd.normal], reject="discard")
    assert await through(discarding, letter(body=GTUBE.format("X"))) == (
        *("250 2.0.0 Ok: discarded", b""),
    )


async def test_it_greylists_and_takes_the_message_when_it_comes_again(rspamd: Peer) -> None:
    unique = time.monotonic_ns()
    content, judge = letter(body=f"grey {unique}"), Rspamd([rspamd.normal])
    sender = f"bob{unique}@grey.example"
    reply, _ = await through(judge, content, sender=sender)
    assert reply == "451 4.7.1 Try again later"
    end = time.monotonic() + 20
    while reply.startswith("451"):
        assert time.monotonic() < end
        await asyncio.sleep(0.3)
        reply, stored = await through(Rspamd([rspamd.normal]), content, sender=sender)
    assert reply.startswith("250")
    assert without_added(stored) == content


async def test_a_password_is_right_or_wrong(rspamd: Peer, caplog: Any) -> None:
    right = Rspamd([rspamd.controller], password="hunter2")
    await asyncio.to_thread(right.check)
    assert (await through(right, letter()))[0].startswith("250")
    wrong = Rspamd([rspamd.controller], password="wrong")
    with pytest.raises(Exception, match="refuses the password"):
        await asyncio.to_thread(wrong.check)
    wrong._servers._looked = True
    assert (await through(wrong, letter()))[0].startswith("451 4.7.1")
    assert "it answers 401, as of a wrong password" in caplog.text


async def test_the_second_server_is_asked_while_the_first_is_down(rspamd: Peer) -> None:
    down = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    judge = Rspamd([down, rspamd.normal], when_down="refuse")
    assert (await through(judge, letter()))[0].startswith("250")


async def test_tls_in_front_of_it_is_verified(rspamd: Peer, certificates: Certificates) -> None:
    port = int(rspamd.normal.rpartition(":")[2])

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_copy(reader, there[1]), _copy(there[0], writer))

    proxy = await asyncio.start_server(pass_on, "127.0.0.1", 0, ssl=certificates.server)
    url = f"https://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    async with proxy:
        trusting = Rspamd([url], ca_file=str(certificates.ca))
        assert (await through(trusting, letter()))[0].startswith("250")
        assert (await through(Rspamd([url]), letter()))[0].startswith("451")


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
    finally:
        writer.close()


async def test_it_takes_a_thousand_recipients_and_any_address(rspamd: Peer) -> None:
    kept = Collect()
    async with (
        serve([Rspamd([rspamd.normal]), kept]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        for names in (
            [f"{'x' * 60}{number}@example.org" for number in range(1000)],
            ['"a b%20"@example.org', "100%@example.org", "ü@example.org", "a%40b@example.org"],
        ):
            await client.say("MAIL FROM:<> SMTPUTF8")
            await client.say(*(f"RCPT TO:<{name}>" for name in names))
            await client.say("DATA")
            client.writer.write(letter() + b".\r\n")
            assert (await client.reply()).code == 250


# -- SPF, DKIM and DMARC -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def key(rspamd: Peer) -> DkimKey:
    made = DkimKey("example.com")
    rspamd.dns.records |= {
        ("example.com", "TXT"): txt(f"v=spf1 ip4:{CLIENT} -all"),
        ("_dmarc.example.com", "TXT"): txt("v=DMARC1; p=reject"),
        ("example.net", "TXT"): txt(f"v=spf1 ip4:{CLIENT} -all"),
        (made.name, "TXT"): txt(made.record),
    }
    return made


def results(content: bytes) -> dict[str, str]:
    """Return the results of the field that rspamd has added; there is no other one."""
    found = [each.value for each in fields(content) if each.name == b"Authentication-Results"]
    assert len(found) == 1, content
    value = found[0].decode()
    assert value.split(";")[0].strip() == "mx.example.com"
    return dict(re.findall(r"(?:^|;)\s*(spf|dkim|dmarc)=(\w+)", value))


FORGED = "Authentication-Results: mx.example.com; spf=pass; dkim=pass; dmarc=pass"


@pytest.mark.parametrize("forged", [[], [FORGED]])
async def test_spf_knows_the_client(rspamd: Peer, key: DkimKey, forged: list[str]) -> None:
    content = letter("bob@example.net", "spf", *forged)
    judge = Rspamd([rspamd.normal])
    sender = "bob@example.net"
    reply, stored = await through(judge, content, sender=sender)
    assert (reply[:3], results(stored)["spf"]) == ("250", "pass")
    reply, stored = await through(Rspamd([rspamd.normal]), content, sender=sender, client=STRANGER)
    assert (reply[:3], results(stored)["spf"]) == ("250", "fail")


@pytest.mark.parametrize("forged", [[], [FORGED]])
async def test_dkim_knows_the_message(rspamd: Peer, key: DkimKey, forged: list[str]) -> None:
    signed = key.sign(letter("bob@example.net", "dkim", *forged))
    reply, stored = await through(Rspamd([rspamd.normal]), signed, sender="bob@example.net")
    assert (reply[:3], results(stored)["dkim"]) == ("250", "pass")
    changed = signed.replace(b"\r\ndkim\r\n", b"\r\nother\r\n")
    reply, stored = await through(Rspamd([rspamd.normal]), changed, sender="bob@example.net")
    assert (reply[:3], results(stored)["dkim"]) == ("250", "fail")


@pytest.mark.parametrize("forged", [[], [FORGED]])
async def test_dmarc_knows_the_author(rspamd: Peer, key: DkimKey, forged: list[str]) -> None:
    content = letter("bob@example.com", "dmarc", *forged)
    reply, stored = await through(Rspamd([rspamd.normal]), content)
    assert (reply[:3], results(stored)["dmarc"]) == ("250", "pass")
    signed = key.sign(content)
    reply, stored = await through(
        Rspamd([rspamd.normal]), signed, sender="list@example.net", client=STRANGER
    )
    assert (reply[:3], results(stored)["dmarc"]) == ("250", "pass")
    reply, _ = await through(
        Rspamd([rspamd.normal]), content, sender="eve@example.net", client=STRANGER
    )
    assert reply.startswith("554 5.7.1 ")
