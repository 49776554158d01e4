"""The filter milter beside Postfix: the same milter has the same effect on the same messages."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from support.handlers import Collect
from support.milter import TestMilter, changed, frame
from support.peers import peers
from support.ports import free_ports
from support.scripted_server import listening
from support.server import serve, until

from peers.milters import (
    EICAR,
    GTUBE,
    clamav,
    folder_of_all,
    opendkim,
    opendmarc,
    rspamd,
    send,
    spamassassin,
)
from peers.postfix import instance
from peers.test_accept_beside_postfix import until_open
from smtpd_fork.filters import Milter
from smtpd_fork.message import fields
from smtpd_fork.testing import MESSAGES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

pytestmark = pytest.mark.peers


@pytest.fixture
def folder() -> Iterator[Path]:
    with folder_of_all() as made:
        yield made


EDITS = [
    frame(b"i", changed(0, b"X-Top", b" first")),
    frame(b"i", changed(1, b"X-Second", b" second")),
    frame(b"h", b"X-Added\0 one\n\ttwo\0"),
    frame(b"m", changed(1, b"subject", b" changed")),
    frame(b"m", changed(2, b"Subject", b"")),
    frame(b"m", changed(7, b"X-Past", b" the end")),
    frame(b"m", changed(1, b"X-Gone", b"")),
    frame(b"i", changed(500, b"X-Bottom", b" last")),
    frame(b"+", b"<dave@example.org>\0"),
]

PLACES = [
    frame(b"i", changed(place, b"X-Inserted", b" %d" % place)) for place in (1, 3, 0, 2, 1, 99, 0)
]

SETTINGS = """\
relay_domains = example.org
relay_transport = smtp:[127.0.0.1]:{port}
smtpd_milters = inet:{milter}
milter_protocol = 6
milter_default_action = tempfail
smtpd_recipient_restrictions = permit_auth_destination, reject
smtp_destination_recipient_limit = 100
local_header_rewrite_clients =
line_length_limit = 2048
"""

TRACE = {b"received", b"message-id", b"date", b"from", b"to", b"return-path"}
"""Fields that Postfix adds or completes."""


def made() -> list[bytes]:
    """Return messages with many kinds of headers, each with its number."""
    found = []
    for number in range(41):
        lines = [
            b"From: a@example.com",
            b"To: b@example.org",
            b"Date: Fri, 27 Nov 2026 12:00 +0000",
        ]
        lines += [b"Message-ID: <%d@example.com>" % number]
        lines += [b"X-Gone: %d" % each for each in range(number % 4)]
        lines += [b"Subject:%b %d" % (b" " * (each % 3), each) for each in range(number % 5)]
        lines += [b"X-Folded: a\r\n b\r\n\tc"] * (number % 3)
        lines += [b"X-Past: %d" % each for each in range(number % 2)]
        rotated = lines[number % len(lines) :] + lines[: number % len(lines)]
        found.append(b"\r\n".join([*rotated, b"X-Number: %d" % number, b"", b"text", b""]))
    return found


UNLIKE = {
    b"dkim-signature": re.compile(rb"\b(?:b|t)=[^;]*"),
    b"x-spam-checker-version": re.compile(rb"on \S+"),
}
"""Parts of the fields of milters that differ in each message: times, signatures of them, and
names of hosts.
"""


def comparable_fields(content: bytes) -> list[tuple[bytes, bytes]]:
    found = []
    for each in fields(content):
        name, value = each.name.lower(), each.value.replace(b"\r\n", b"\n")
        if name in UNLIKE:
            value = UNLIKE[name].sub(b"", value)
        if name not in TRACE:
            found.append((each.name, value))
    return found


def letters() -> list[bytes]:
    """Return 50 messages, each with its number."""
    found = made()
    found += [
        b"X-Number: m%d\r\n%b" % (number, each)
        for number, each in enumerate(MESSAGES.values())
        if each.startswith(b"From: ") and len(each) < 50_000 and each.isascii()
    ]
    return found[:50]


class Both:
    """Our server and Postfix, with the same milter, and the messages that they sent on."""

    def __init__(self, ours: Collect, theirs: Collect, ports: tuple[int, int]) -> None:
        self.ours, self.theirs = ours, theirs
        self._ports = ports
        self.answers: list[tuple[tuple[int, str], tuple[int, str]]] = []

    async def send(self, sent: list[bytes]) -> None:
        ours, theirs = [await send(port, *sent) for port in self._ports]
        self.answers = list(zip(ours, theirs, strict=True))
        taken = sum(code == 250 for code, _ in theirs)
        await until(lambda: len(self.theirs.envelopes) == taken)

    def check_same(self) -> None:
        """Check that both accepted the same messages, with the same header and recipients."""
        for (code, text), (their_code, their_text) in self.answers:
            assert code == their_code
            assert code == 250 or text == their_text
        there = {_number(each.content): each for each in self.theirs.envelopes}
        for each in self.ours.envelopes:
            other = there.pop(_number(each.content))
            assert comparable_fields(each.content) == comparable_fields(other.content)
            assert sorted(each.rcpt_tos) == sorted(other.rcpt_tos)
        assert there == {}


@asynccontextmanager
async def both(folder: Path, address: str, **keys: Any) -> AsyncIterator[Both]:
    peers("postfix")
    folder.chmod(0o755)
    ours, theirs = Collect(), Collect()
    (port,) = free_ports(1)
    async with (
        serve([Milter(address, **keys), ours]) as server,
        serve(theirs, hostname="sink.example.org") as sink,
    ):
        settings = SETTINGS.format(port=sink.port, milter=address)
        with instance(folder, settings, f"127.0.0.1:{port} inet n - n - - smtpd\n"):
            await until_open(port)
            yield Both(ours, theirs, (server.port, port))


def _number(content: bytes) -> bytes:
    return content.partition(b"X-Number: ")[2].partition(b"\r\n")[0]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("stages", [["data"], ["connect", "helo", "mail", "rcpt"]])
@pytest.mark.parametrize("edits", [EDITS, PLACES])
async def test_a_milter_changes_a_header_as_with_postfix(
    folder: Path, edits: list[bytes], stages: list[str]
) -> None:
    milter = TestMilter(edits=edits, protocol=0x100000)
    async with (
        listening(milter, tcp=True),
        both(folder, milter.address, stages=stages) as servers,
    ):
        await servers.send(letters())
    assert len(servers.ours.envelopes) == 50
    servers.check_same()


def _numbered(number: bytes, text: str) -> bytes:
    head = b"From: bob@example.com\r\nTo: carol@example.org\r\nMessage-ID: <%b@example.com>\r\n"
    date = b"Date: Fri, 27 Nov 2026 12:00:00 +0000\r\n"
    return head % number + date + b"X-Number: " + number + b"\r\n\r\n" + text.encode() + b"\r\n"


def _of_signer(folder: Path, address: str) -> AbstractContextManager[str]:
    return opendkim(folder, "s", address)


def _of_dmarc(folder: Path, address: str) -> AbstractContextManager[str]:
    (folder / "ignored").write_text("192.0.2.1\n")
    return opendmarc(folder, address, f"IgnoreHosts {folder}/ignored\n")


PROGRAMS = {
    "opendkim": (_of_signer, b"DKIM-Signature"),
    "clamav-milter": (clamav, b"X-Virus-Status"),
    "spamass-milter": (spamassassin, b"X-Spam-Status"),
    "opendmarc": (_of_dmarc, b"Authentication-Results"),
}
"""Programs, and a field that each adds."""


@pytest.mark.timeout(240)
@pytest.mark.parametrize("program", PROGRAMS)
async def test_fifty_messages_have_the_same_header_as_with_postfix(
    folder: Path, program: str
) -> None:
    run, field = PROGRAMS[program]
    with run(folder, "127.0.0.1:{}".format(*free_ports(1))) as address:
        async with both(folder, address) as servers:
            await servers.send([*letters(), _numbered(b"e", EICAR), _numbered(b"g", GTUBE)])
    servers.check_same()
    assert any(each.name == field for each in fields(servers.ours.messages[-1]))


@pytest.mark.timeout(240)
async def test_fifty_messages_through_rspamd_have_the_same_header_as_with_postfix(
    folder: Path,
) -> None:
    async with (
        rspamd(folder, "127.0.0.1:{}".format(*free_ports(1))) as address,
        both(folder, address) as servers,
    ):
        await servers.send([*letters(), _numbered(b"g", GTUBE)])
    servers.check_same()
    assert servers.answers[-1][0][0] == 554
