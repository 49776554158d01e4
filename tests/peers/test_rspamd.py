"""The filter rspamd with a real rspamd: its actions, its header fields, SPF, DKIM and DMARC."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.handlers import Collect
from support.ports import free_port
from support.server import serve

from peers.rspamd import GTUBE, STRANGER, Peer, letter, running_rspamd, through
from smtpd_fork.errors import HandlerError
from smtpd_fork.filters import Milter, Rspamd
from smtpd_fork.message.fields import fields, remove_fields

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.tls import Certificates

pytestmark = [pytest.mark.peers, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def rspamd() -> Iterator[Peer]:
    with running_rspamd() as peer:
        yield peer


def without_added(content: bytes) -> bytes:
    """Return a message without the field that rspamd has added."""
    return remove_fields(content, "Authentication-Results")


@pytest.mark.parametrize("over", ["normal", "unix"])
async def test_each_action_is_taken(over: str, rspamd: Peer) -> None:
    url = getattr(rspamd, over)
    reply, stored = await through(Rspamd([url]), content := letter())
    assert reply.startswith("250")
    assert without_added(stored) == content
    reply, _ = await through(Rspamd([url]), letter(body=GTUBE.format("X")))
    assert reply == "554 5.7.1 Gtube pattern"
    reply, stored = await through(Rspamd([url]), letter(body=GTUBE.format("Y")))
    assert reply.startswith("250")
    assert b"\r\nX-Spam: Yes\r\n" in stored
    reply, stored = await through(Rspamd([url]), letter(body=GTUBE.format("Z")))
    assert reply.startswith("250")
    assert b"\r\nSubject: *** SPAM *** x\r\n" in stored
    assert stored.count(b"Subject: ") == 1
    discarding = Rspamd([url], reject="discard")
    assert await through(discarding, letter(body=GTUBE.format("X"))) == (
        *("250 2.0.0 Ok: discarded", b""),
    )


async def test_it_greylists_and_accepts_the_message_at_the_second_attempt(rspamd: Peer) -> None:
    unique = time.monotonic_ns()
    sender, judge = f"bob{unique}@grey.example", Rspamd([rspamd.normal])
    content = letter(sender, f"grey {unique}")
    reply, _ = await through(judge, content, sender=sender)
    assert reply == "451 4.7.1 Try again later"
    end = time.monotonic() + 20
    while reply.startswith("451"):
        assert time.monotonic() < end
        await asyncio.sleep(0.3)
        reply, stored = await through(Rspamd([rspamd.normal]), content, sender=sender)
    assert reply.startswith("250")
    assert without_added(stored) == content


async def test_a_wrong_password_is_an_error(rspamd: Peer, caplog: Any) -> None:
    right = Rspamd([rspamd.controller], password="hunter2")
    await asyncio.to_thread(right.check)
    assert (await through(right, letter()))[0].startswith("250")
    wrong = Rspamd([rspamd.controller], password="wrong")
    with pytest.raises(HandlerError, match="refuses the password"):
        await asyncio.to_thread(wrong.check)
    wrong._servers._checked = True
    assert (await through(wrong, letter()))[0].startswith("451 4.7.1")
    assert "it answers 401 (wrong password?)" in caplog.text


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


async def test_it_accepts_a_thousand_recipients_and_any_address(rspamd: Peer) -> None:
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


def results(content: bytes) -> dict[str, str]:
    """Return the results in the field that rspamd has added; there must be only one."""
    found = [each.value for each in fields(content) if each.name == b"Authentication-Results"]
    assert len(found) == 1, content
    value = found[0].decode()
    assert value.split(";")[0].strip() == "mx.example.com"
    return dict(re.findall(r"(?:^|;)\s*(spf|dkim|dmarc)=(\w+)", value))


FORGED = "Authentication-Results: mx.example.com; spf=pass; dkim=pass; dmarc=pass"


@pytest.mark.parametrize("forged", [[], [FORGED]])
async def test_spf_depends_on_the_client(rspamd: Peer, forged: list[str]) -> None:
    content = letter("bob@example.net", "spf", *forged)
    judge = Rspamd([rspamd.normal])
    sender = "bob@example.net"
    reply, stored = await through(judge, content, sender=sender)
    assert (reply[:3], results(stored)["spf"]) == ("250", "pass")
    reply, stored = await through(Rspamd([rspamd.normal]), content, sender=sender, client=STRANGER)
    assert (reply[:3], results(stored)["spf"]) == ("250", "fail")


@pytest.mark.parametrize("forged", [[], [FORGED]])
async def test_dkim_depends_on_the_message(rspamd: Peer, forged: list[str]) -> None:
    signed = rspamd.key.sign(letter("bob@example.net", "dkim", *forged))
    reply, stored = await through(Rspamd([rspamd.normal]), signed, sender="bob@example.net")
    assert (reply[:3], results(stored)["dkim"]) == ("250", "pass")
    changed = signed.replace(b"\r\ndkim\r\n", b"\r\nother\r\n")
    reply, stored = await through(Rspamd([rspamd.normal]), changed, sender="bob@example.net")
    assert (reply[:3], results(stored)["dkim"]) == ("250", "fail")


@pytest.mark.parametrize("forged", [[], [FORGED]])
async def test_dmarc_depends_on_the_author(rspamd: Peer, forged: list[str]) -> None:
    content = letter("bob@example.com", "dmarc", *forged)
    reply, stored = await through(Rspamd([rspamd.normal]), content)
    assert (reply[:3], results(stored)["dmarc"]) == ("250", "pass")
    signed = rspamd.key.sign(content)
    reply, stored = await through(
        Rspamd([rspamd.normal]), signed, sender="list@example.net", client=STRANGER
    )
    assert (reply[:3], results(stored)["dmarc"]) == ("250", "pass")
    reply, _ = await through(
        Rspamd([rspamd.normal]), content, sender="eve@example.net", client=STRANGER
    )
    assert reply.startswith("554 5.7.1 ")


async def test_it_signs_messages_of_authenticated_clients(rspamd: Peer) -> None:
    content = letter(body="signed")
    signer = Rspamd([rspamd.normal], skip_authenticated=False)
    reply, signed = await through(signer, content, client=STRANGER, login=True)
    assert reply.startswith("250")
    assert signed.endswith(content)
    assert signed.count(b"DKIM-Signature: ") == 1
    reply, stored = await through(Rspamd([rspamd.normal]), signed, sender="list@example.net")
    assert (reply[:3], results(stored)["dkim"]) == ("250", "pass")
    reply, unsigned = await through(Rspamd([rspamd.normal]), content, client=STRANGER, login=True)
    assert (reply[:3], unsigned) == ("250", content)  # rspamd was not asked.


async def test_http_and_the_milter_give_the_same_message(rspamd: Peer) -> None:
    letters = [letter(), *(letter(body=GTUBE.format(each)) for each in "XYZ")]
    letters += [rspamd.key.sign(letter(body="dkim")), letter("bob@example.net", "spf", FORGED)]
    letters += [letter("bob@example.com", "x", "X-Spam: No", "x-spam: no", "Received: from a")]
    for content in letters:
        replies, stored = [], []
        for judge in (Rspamd([rspamd.normal]), Milter(rspamd.milter)):
            reply, message = await through(judge, content)
            replies.append(reply.partition(" ")[2])
            stored.append(message)
        assert replies[0] == replies[1]
        assert stored[0] == stored[1]
