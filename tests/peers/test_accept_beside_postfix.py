"""accept and Postfix: the same rules in both lead each recipient to the same addresses.

Postfix has virtual_alias_maps, in which it looks up the table of addresses before that of patterns,
and sends the resulting messages to a server of the test.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.client import Client
from support.handlers import Collect
from support.peers import peers
from support.ports import free_ports
from support.server import serve, until

from peers.postfix import instance
from smtpd_fork.filters import Accept

if TYPE_CHECKING:
    from collections.abc import Iterator

ADDRESSES = """\
# a comment
bob@example.com         bob@example.com, archive@example.net
carol@example.com       c@example.net
all@example.com         bob@example.com,
    carol@example.com dave@example.com
user@example.com        u@example.net
user+x@example.com      ux@example.net
Upper@Example.com       upper@example.net
loop1@example.com       user@example.com, loop1@example.com
box@d.example           exact@example.net
@d.example              @e.example
x@e.example             xe@example.net
team@e.example          x@e.example, y@d.example
@f.example              everything@example.net
"""

PATTERNS = """\
/^pattern[0-9]+@example\\.com$/    p@example.net
/^PATTERN/                        second@example.net
/^user@/                          never@example.net
/^bob\\+late@/                     late@example.net
/^f-.*@f\\.example$/               f@example.net
"""

KNOWN = "nobody@example.com\na-pattern1@example.com\ny@e.example\n+x@example.com\n"
"""Mailboxes, which Postfix has in another table."""

SETTINGS = """\
virtual_alias_maps = texthash:{folder}/addresses, regexp:{folder}/patterns
relay_domains = example.com, d.example, e.example, f.example, example.net
relay_transport = smtp:[127.0.0.1]:{port}
recipient_delimiter = +
smtp_destination_recipient_limit = 100
local_recipient_maps =
smtpd_recipient_restrictions = permit_auth_destination, reject
"""

RECIPIENTS = (
    *("bob@example.com", "BOB@EXAMPLE.COM", "bob+news@example.com", "carol@example.com"),
    *("all@example.com", "all+x@example.com", "user@example.com", "user+x@example.com"),
    *("user+y@example.com", "upper@example.com", "nobody@example.com", "loop1@example.com"),
    *("box@d.example", "other@d.example", "x@d.example", "x@e.example", "y@e.example"),
    *("team@e.example", "pattern1@example.com", "pattern@example.com", "a-pattern1@example.com"),
    *("f-1@f.example", "g-1@f.example", "+x@example.com", "user+@example.com"),
)


EXTENDED = "bob+late@example.com"


@pytest.fixture
def directory() -> Iterator[Path]:
    """Yield a directory that the user postfix may enter."""
    made = Path(tempfile.mkdtemp(prefix="smtpd-fork-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


async def send(port: int, recipient: str) -> int:
    async with await Client.to(("127.0.0.1", port)) as client:
        await client.greet()
        return (await client.deliver(to=recipient, body=f"Subject: {recipient}\r\n\r\nx\r\n")).code


def by_subject(kept: Collect) -> dict[str, list[str]]:
    """Return the recipients of each message, by the original recipient."""
    found: dict[str, list[str]] = {}
    for envelope in kept.envelopes:
        subject = envelope.content.partition(b"Subject: ")[2].partition(b"\r\n")[0].decode()
        found[subject] = sorted([*found.get(subject, []), *envelope.rcpt_tos])
    return found


@pytest.mark.peers
async def test_each_recipient_becomes_the_same_addresses(directory: Path) -> None:
    peers("postfix")
    (directory / "addresses").write_text(ADDRESSES)
    (directory / "patterns").write_text(PATTERNS)
    patterns = PATTERNS.replace("/^PATTERN/ ", "/^PATTERN/i")  # Postfix always ignores case.
    (directory / "map").write_text(ADDRESSES + KNOWN + patterns)
    (port,) = free_ports(1)
    domains = ["example.com", "d.example", "e.example", "f.example", "example.net"]
    made = Accept(domains, recipients=str(directory / "map"))
    ours, theirs = Collect(), Collect()
    async with serve([made, ours]) as server, serve(theirs) as sink:
        settings = SETTINGS.format(folder=directory, port=sink.port)
        with instance(directory, settings, f"127.0.0.1:{port} inet n - n - - smtpd\n"):
            await until_open(port)
            for recipient in (*RECIPIENTS, EXTENDED):
                assert await send(port, recipient) == 250, recipient
                assert await send(server.port, recipient) == 250, recipient
            await until(lambda: len(by_subject(theirs)) == len(RECIPIENTS) + 1)
    become, become_there = by_subject(ours), by_subject(theirs)
    # The one difference: Postfix matches a pattern before an address without its extension.
    assert become.pop(EXTENDED) == ["archive+late@example.net", "bob+late@example.com"]
    assert become_there.pop(EXTENDED) == ["late@example.net"]
    assert become == become_there


async def until_open(port: int) -> None:
    while True:
        try:
            async with await Client.to(("127.0.0.1", port)) as client:
                if (await client.reply()).code == 220:
                    return
        except ConnectionRefusedError:
            await asyncio.sleep(0.01)
