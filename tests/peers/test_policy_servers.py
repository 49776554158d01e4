"""The filter policy with policy servers in wide use, each in its own process."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client, code_and_enhanced
from support.handlers import Collect
from support.nameserver import name_server, txt
from support.peers import namespaces, peers
from support.ports import free_port
from support.server import serve

from peers.milters import _listens, folder_of_all, running
from smtpd_fork.filters import Policy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.peers


@pytest.fixture
def place() -> Iterator[Path]:
    with folder_of_all() as made:
        yield made


async def send(port: int, sender: str, *recipients: str, helo: str = "mail.example.org") -> Any:
    """Send a message; return the reply to each recipient, and to the message if there was one."""
    async with await Client.to(("127.0.0.1", port)) as client:
        await client.greet(helo)
        assert (await client.say(f"MAIL FROM:<{sender}>")).code == 250
        replies = [code_and_enhanced(await client.say(f"RCPT TO:<{each}>")) for each in recipients]
        if any(code == 250 for code, _ in replies):
            assert (await client.say("DATA")).code == 354
            client.send("Subject: x\r\n\r\ntext\r\n.\r\n")
            replies.append(code_and_enhanced(await client.reply()))
        return replies


def the_field(message: bytes, name: bytes) -> bytes:
    (line,) = [each for each in message.split(b"\r\n") if each.startswith(name + b":")]
    return line.partition(b": ")[2]


# -- postgrey --------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["unix", "tcp"])
async def test_postgrey_defers_the_first_time_and_accepts_after_its_delay(
    where: str, place: Path
) -> None:
    (program,) = peers("postgrey")
    user = pwd.getpwnam("postgrey")
    (place / "db").mkdir()
    os.chown(place / "db", user.pw_uid, user.pw_gid)
    address = f"unix:{place}/sock" if where == "unix" else f"127.0.0.1:{free_port('127.0.0.1')}"
    listen = f"--unix={place}/sock" if where == "unix" else f"--inet={address}"
    command = [program, listen, f"--dbdir={place}/db", "--delay=1", "--lookup-by-host"]
    command += ["--whitelist-clients=/dev/null", "--whitelist-recipients=/dev/null"]
    kept = Collect()
    with running(place, address, command):
        async with serve([Policy(address), kept]) as server:
            first = await send(server.port, "bob@example.org", "b@example.com", "c@example.com")
            assert [code for code, _ in first] == [450, 450]
            again = first
            async with asyncio.timeout(20):
                while again[0][0] == 450:
                    await asyncio.sleep(0.2)
                    again = await send(server.port, "bob@example.org", "b@example.com")
            assert again == [(250, "2.1.5"), (250, "2.0.0")]
    (message,) = kept.messages
    assert the_field(message, b"X-Greylist").startswith(b"delayed ")
    assert message.endswith(b"\r\nSubject: x\r\n\r\ntext\r\n")


# -- policyd-spf -----------------------------------------------------------------------------------

RECORDS = {
    "good.example": "v=spf1 ip4:127.0.0.0/8 -all",
    "bad.example": "v=spf1 -all",
    "forged.example": "v=spf1 ip4:192.0.2.0/24 -all",
    "soft.example": "v=spf1 ~all",
    "broken.example": "v=spf1 ip4:what -all",
}

VERDICTS = {
    "good.example": (250, "Pass"),
    "bad.example": (550, ""),
    "forged.example": (550, ""),
    "soft.example": (250, "Softfail"),
    "none.example": (250, "None"),
}

CONFIGURATION = """\
debugLevel = 0
TestOnly = 1
HELO_reject = False
Mail_From_reject = Fail
PermError_reject = False
TempError_Defer = False
skip_addresses = 198.51.100.1
Lookup_Time = 10
"""


async def test_policyd_spf_refuses_what_the_domain_of_the_sender_forbids(place: Path) -> None:
    program, activate = peers("policyd-spf", "systemd-socket-activate")
    host = f"127.53.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
    (place / "resolv.conf").write_text(f"nameserver {host}\noptions timeout:2 attempts:1\n")
    (place / "spf.conf").write_text(CONFIGURATION)
    mount = f"mount --bind {place}/resolv.conf /etc/resolv.conf && exec "
    spf = f"{activate} --accept --inetd --listen={place}/sock {program} {place}/spf.conf"
    command = [*namespaces("--mount"), "sh", "-c", mount + spf]
    kept, address = Collect(), f"unix:{place}/sock"
    async with name_server(host, 53) as dns:
        dns.records |= {(name, "TXT"): txt(text) for name, text in RECORDS.items()}
        with running(place, address, command):
            async with serve([Policy(address), kept]) as server:
                for domain, (code, verdict) in VERDICTS.items():
                    kept.envelopes.clear()
                    replies = await send(
                        server.port, f"a@{domain}", "b@example.com", "c@example.com"
                    )
                    assert {each for each, _ in replies} == {code}, (domain, replies)
                    if code == 550:
                        assert replies[0] == (550, "5.7.23")
                        continue
                    (message,) = kept.messages
                    field = the_field(message, b"Received-SPF").decode()
                    assert field.startswith(f"{verdict} (mailfrom) "), field
                    assert "client-ip=127.0.0.1;" in field
                    assert "helo=mail.example.org;" in field
        assert ("good.example", "TXT") in dns.asked


# -- postfwd ---------------------------------------------------------------------------------------

RULES = """\
id=SIZE; protocol_state==END-OF-MESSAGE; size>=1000; action=REJECT too large
id=SENDER; sender==bad@example.org; action=REJECT 5.7.1 not welcome here
id=LATER; recipient==later@example.com; action=DEFER come back
id=MARK; protocol_state==RCPT; action=PREPEND X-Checked: $$client_address
"""


@asynccontextmanager
async def postfwd(place: Path, port: int) -> AsyncIterator[str]:
    """Run postfwd, which only serves in the background; yield its address."""
    (program,) = peers("postfwd")
    (place / "rules").write_text(RULES)
    command = [program, "--daemon", "--interface=127.0.0.1", f"--port={port}", "--user=nobody"]
    command += ["--group=nogroup", f"--file={place}/rules", f"--pidfile={place}/pid"]
    command += [f"--cache_socket=unix::{place}/cache"]
    with (place / "log").open("wb") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    async with asyncio.timeout(20):
        while not _listens(f"127.0.0.1:{port}"):
            await asyncio.sleep(0.05)
    pid = int((place / "pid").read_text())
    try:
        yield f"127.0.0.1:{port}"
    finally:
        os.kill(pid, signal.SIGTERM)


async def test_postfwd_decides_by_its_rules(place: Path) -> None:
    kept = Collect()
    async with postfwd(place, free_port("127.0.0.1")) as address:
        chain = [Policy(address, stages=["rcpt", "end-of-message"]), kept]
        async with serve(chain) as server:
            recipients = ("b@example.com", "later@example.com")
            replies = await send(server.port, "bob@example.org", *recipients)
            assert replies == [(250, "2.1.5"), (450, "4.7.1"), (250, "2.0.0")]
            assert await send(server.port, "bad@example.org", recipients[0]) == [(554, "5.7.1")]
    (message,) = kept.messages
    assert the_field(message, b"X-Checked") == b"127.0.0.1"
