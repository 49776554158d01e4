"""XCLIENT and XFORWARD with programs that support them: Postfix on both sides, nginx, swaks."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.daemon import end
from support.handlers import Collect
from support.mail import a_mail
from support.next_hop import closing
from support.peers import needs_root, peer, peers
from support.policy import TestPolicy
from support.ports import free_ports
from support.scripted_server import listening
from support.server import serve, until

from peers.postfix import instance
from peers.test_accept_beside_postfix import until_open
from smtpd_fork.filters import Policy
from smtpd_fork.message import MailClient
from smtpd_fork.sinks import Lmtp, Relay

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.peers

CLIENT = MailClient(("198.51.100.7", 40312), "client.example", protocol="ESMTP")
NAMED = MailClient(("2001:db8::7", 25, 0, 0), "other.example", "host.example", "bob")

IN_FRONT = """\
relay_domains = example.com
relay_transport = smtp:[127.0.0.1]:{behind}
smtpd_authorized_xclient_hosts = 127.0.0.1
smtpd_authorized_xforward_hosts = 127.0.0.1
smtpd_recipient_restrictions = permit_mynetworks, reject_unauth_destination
smtp_send_xforward_command = yes
lmtp_send_xforward_command = yes
smtpd_client_connection_count_limit = 0
"""
LMTP = "lmtp unix - - n - - lmtp\n"


class Looks(Collect):
    """Stores the attributes of the client of each message as well."""

    def __init__(self) -> None:
        super().__init__()
        self.clients: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.clients.append((session.peer[:1], session.host_name, bool(session.authenticated)))
        return await super().handle_DATA(server, session, envelope)


async def code_of(sink: Any, client: MailClient) -> str:
    """Return the code of the reply to a message of a client, or the whole reply if not 250."""
    replies = await sink.deliver(a_mail(client=client))
    reply = replies if isinstance(replies, str) else replies[0]
    return "250" if reply[:3] == "250" else reply


@pytest.fixture
def directory() -> Iterator[Path]:
    """Yield a directory that other users may enter."""
    needs_root()
    made = Path(tempfile.mkdtemp(prefix="smtpd-fork-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@contextmanager
def postfix(directory: Path, port: int, settings: str, more: str = "") -> Iterator[Path]:
    """Run a Postfix that listens on a port; yield its log.

    :param more: lines of its master.cf
    """
    peers("postfix")
    service = f"127.0.0.1:{port} inet n - n - - smtpd"
    options = "-o mynetworks=127.0.0.1 -o inet_protocols=all"
    with instance(directory, settings, f"{service} {options}\n{LMTP}{more}"):
        yield directory / "log"


def received(content: bytes) -> str:
    """Return the first field Received, which is that of the previous server."""
    found = re.match(rb"(?:Received: .*?\n(?![ \t]))", content, re.DOTALL)
    assert found is not None, content
    return found[0].decode()


# -- Postfix behind ----------------------------------------------------------------------------


async def test_postfix_treats_the_named_clients_as_its_own(directory: Path) -> None:
    front, behind = free_ports(2)
    kept = Collect()
    with postfix(directory, front, IN_FRONT.format(behind=behind)) as log:
        async with serve(kept, listen=[f"127.0.0.1:{behind}"]):
            await until_open(front)
            async with closing(Relay(f"127.0.0.1:{front}", pass_client="xclient")) as relay:
                for client in (CLIENT, NAMED, CLIENT):
                    assert await code_of(relay, client) == "250"
                refused = await relay.deliver(a_mail("b@elsewhere.example", client=CLIENT))
                own = await relay.deliver(
                    a_mail("b@elsewhere.example", client=MailClient(("127.0.0.1", 25), "x.example"))
                )
            await until(lambda: len(kept.envelopes) >= 3)
        text = log.read_text()
    assert refused[0].startswith("454 4.7.1 <b@elsewhere.example>: Relay access denied")
    assert own[0][:3] == "250"
    heads = sorted(received(each.content).partition("\r\n")[0] for each in kept.envelopes[:3])
    assert heads == [
        *["Received: from client.example (unknown [198.51.100.7])"] * 2,
        "Received: from other.example (host.example [IPv6:2001:db8::7])",
    ]
    login = "client=host.example[2001:db8::7], sasl_method=XCLIENT, sasl_username=bob"
    assert login in text


async def test_policy_servers_are_asked_about_the_host_that_sends_xforward_as_by_postfix(
    directory: Path,
) -> None:
    (front,) = free_ports(1)
    async with listening(TestPolicy(), tcp=True) as policy:
        settings = (
            "smtpd_authorized_xforward_hosts = 127.0.0.1\nrelay_domains = example.com\n"
            f"smtpd_recipient_restrictions = check_policy_service inet:{policy.address}, permit\n"
        )
        with postfix(directory, front, settings):
            await until_open(front)
            await _forwarded(front)
        chain = [Policy(policy.address), Collect()]
        async with serve(chain, xforward_trust=["127.0.0.1"]) as server:
            await _forwarded(server.port)
    of_postfix, ours = (
        {name: each[name] for name in ("client_address", "client_name", "helo_name")}
        for each in policy.requests
    )
    assert ours["client_address"] == of_postfix["client_address"] == "127.0.0.1"
    assert ours["helo_name"] == of_postfix["helo_name"] == "filter.example"
    assert "origin.example" not in (ours["client_name"], of_postfix["client_name"])


async def _forwarded(port: int) -> None:
    """Send XFORWARD for another client, as a content filter does, and a recipient."""
    async with await Client.to(("127.0.0.1", port)) as client:
        await client.greet("filter.example")
        words = "NAME=origin.example ADDR=198.51.100.7 HELO=origin.example"
        assert (await client.say(f"XFORWARD {words}")).code == 250
        said = await client.say("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.com>")
        assert said.code == 250


async def test_postfix_logs_the_origin_of_a_message(directory: Path) -> None:
    front, behind = free_ports(2)
    kept = Collect()
    with postfix(directory, front, IN_FRONT.format(behind=behind)) as log:
        async with serve(kept, listen=[f"127.0.0.1:{behind}"]):
            await until_open(front)
            async with closing(Relay(f"127.0.0.1:{front}", pass_client="xforward")) as relay:
                await relay.deliver(a_mail(client=CLIENT))
                await relay.deliver(a_mail(client=NAMED))
            await until(lambda: len(kept.envelopes) == 2)
        text = log.read_text()
    assert "orig_queue_id=77-1-1, orig_client=unknown[198.51.100.7]" in text
    assert "orig_queue_id=77-1-1, orig_client=host.example[2001:db8::7]" in text
    assert all("[127.0.0.1]" in received(each.content) for each in kept.envelopes)


# -- Postfix in front --------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["smtp", "lmtp"])
async def test_postfix_sends_the_origin_of_a_message(directory: Path, protocol: str) -> None:
    front, behind = free_ports(2)
    kept = Looks()
    settings = IN_FRONT.format(behind=behind)
    if protocol == "lmtp":
        settings = settings.replace(f"smtp:[127.0.0.1]:{behind}", f"lmtp:inet:127.0.0.1:{behind}")
    trust = {"xforward_trust": ["127.0.0.1"]}
    with postfix(directory, front, settings):
        async with serve(kept, listen=[f"{protocol}:127.0.0.1:{behind}"], **trust):
            await until_open(front)
            async with await Client.to(("127.0.0.1", front), source="127.0.0.9") as client:
                await client.greet("spike.example")
                reply = await client.deliver(to="b@example.com")
            await until(lambda: kept.envelopes)
    assert reply.text.endswith(kept.envelopes[0].xforward["IDENT"])
    assert kept.envelopes[0].xforward | {"PORT": "", "IDENT": ""} == {
        "ADDR": "127.0.0.9", "PORT": "", "PROTO": "ESMTP", "HELO": "spike.example", "IDENT": "",
        "SOURCE": "REMOTE",
    }  # fmt: skip
    assert kept.clients[0][0] == ("127.0.0.1",)


async def test_a_filter_between_two_postfixes_passes_the_origin_on(directory: Path) -> None:
    front, between, back, behind = free_ports(4)
    kept = Collect()
    settings = IN_FRONT.format(behind=behind)
    proxy = f"127.0.0.1:{front} inet n - n - - smtpd -o smtpd_proxy_filter=127.0.0.1:{between}\n"
    with postfix(directory, back, settings, proxy) as log:
        relay = Relay(f"127.0.0.1:{back}", pass_client="xforward")
        trust = {"xforward_trust": ["127.0.0.1"], "listen": [f"127.0.0.1:{between}"]}
        async with serve(relay, **trust), serve(kept, listen=[f"127.0.0.1:{behind}"]):
            await until_open(front)
            async with await Client.to(("127.0.0.1", front), source="127.0.0.9") as client:
                await client.greet("spike.example")
                assert (await client.deliver(to="b@example.com")).code == 250
            await until(lambda: kept.envelopes)
        text = log.read_text()
    assert re.search(r": client=[^,]*127\.0\.0\.1\], .*orig_client=\S*\[127\.0\.0\.9\]", text), text


# -- swaks -------------------------------------------------------------------------------------


async def run(*command: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, check=False, timeout=60
    )


async def test_swaks_names_a_client_and_is_refused_with_it() -> None:
    kept = Looks()
    trust = {"xclient_trust": ["127.0.0.1"], "deny": ["198.51.100.8"]}
    async with serve(kept, **trust) as server:
        swaks = [peer("swaks"), "--server", f"127.0.0.1:{server.port}", "--to", "b@example.com"]
        attributes = ["--xclient-name", "host.example", "--xclient-login", "bob"]
        attributes += ["--xclient-addr", "198.51.100.7"]
        ended = await run(*swaks, *attributes, "--helo", "x.example")
        assert ended.returncode == 0, ended.stdout
        denied = await run(*swaks, "--xclient-addr", "198.51.100.8")
        assert "554 5.7.1 mx.example.com Access denied" in denied.stdout
    assert kept.clients == [(("198.51.100.7",), "x.example", True)]


# -- nginx -------------------------------------------------------------------------------------

NGINX = """\
load_module modules/ngx_mail_module.so;
daemon off;
pid {folder}/pid;
error_log {folder}/log;
events {{
}}
mail {{
    server_name mx.example.com;
    auth_http 127.0.0.1:{judge}/;
    proxy_pass_error_message on;
    server {{
        listen 127.0.0.1:{front};
        protocol smtp;
        smtp_auth none;
        xclient on;
    }}
}}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{judge};
        access_log off;
        add_header Auth-Status OK;
        add_header Auth-Server 127.0.0.1;
        add_header Auth-Port {behind};
        location / {{
            return 204;
        }}
    }}
}}
"""


@contextmanager
def nginx(folder: Path, front: int, behind: int) -> Iterator[None]:
    """Run an nginx whose mail module accepts clients."""
    program = peer("nginx")
    (judge,) = free_ports(1)
    text = NGINX.format(folder=folder, front=front, behind=behind, judge=judge)
    (folder / "nginx.conf").write_text(text)
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [program, "-c", str(folder / "nginx.conf"), "-e", str(folder / "log")],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield
    finally:
        end(process)


async def test_clients_of_nginx_are_checked_as_direct_clients(directory: Path) -> None:
    kept = Looks()
    (front,) = free_ports(1)
    limits = {"xclient_trust": ["127.0.0.1"], "max_from_ip": 2, "deny": ["127.0.0.13"]}
    async with serve(kept, **limits) as server:
        with nginx(directory, front, server.port):
            await until_open(front)
            clients, replies = [], []
            for number in (7, 7, 7, 8, 13):
                client = await Client.to(("127.0.0.1", front), source=f"127.0.0.{number}")
                clients.append(client)
                await client.greet(f"of{number}.example")
                assert (await client.say("MAIL FROM:<a@example.org>")).code == 250
                reply = await client.say("RCPT TO:<b@example.com>")
                replies.append(f"{reply.code} {reply.text}")
            assert [reply[:3] for reply in replies] == ["250", "250", "421", "250", "554"]
            assert "Too many connections from 127.0.0.7" in replies[2]
            assert server.gate.clients == {"127.0.0.7": 2, "127.0.0.8": 1}
            assert (await clients[0].say("DATA")).code == 354
            clients[0].send("Subject: x\r\n\r\nx\r\n.\r\n")
            assert (await clients[0].reply()).code == 250
            for client in clients:
                await client.close()
            await until(lambda: server.gate.count == 0)
    assert kept.clients == [(("127.0.0.7",), "of7.example", False)]


async def test_lmtp_to_this_server_names_the_client() -> None:
    kept = Looks()
    listen = ["lmtp:127.0.0.1:0"]
    async with serve(kept, listen=listen, xclient_trust=["127.0.0.1"]) as server:
        async with closing(Lmtp(f"127.0.0.1:{server.port}", pass_client="xclient")) as lmtp:
            assert await code_of(lmtp, NAMED) == "250"
    assert kept.clients == [(("2001:db8::7",), "other.example", True)]
