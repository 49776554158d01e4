"""Replies: a check of their syntax, and texts that a handler might return."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import MISSING
from hypothesis import strategies as st

if TYPE_CHECKING:
    from support.client import Client

WELL_FORMED = re.compile(
    rb"(?:([2-5][0-9][0-9])-[^\x00-\x08\x0a-\x1f\x7f]*\r\n(?=\1))*"
    rb"[2-5][0-9][0-9](?: [^\x00-\x08\x0a-\x1f\x7f]*)?\r\n"
)
"""RFC 5321 4.2; a tab is in its ``textstring`` as well, and octets of UTF-8 (RFC 6531)."""


def assert_well_formed(sent: bytes, count: int = 1) -> None:
    end = 0
    for _ in range(count):
        match = WELL_FORMED.match(sent, end)
        assert match is not None, sent[end:]
        assert all(len(line) <= 512 for line in match[0].splitlines(keepends=True))
        end = match.end()
    assert end == len(sent), sent[end:]


parts = st.sampled_from(
    [
        "250",
        "550",
        "334",
        "2",
        " ",
        "-",
        "\r\n",
        "\n",
        "\r",
        "a",
        "\0",
        "\u00fc",
        "\ud800",
        "2.0.0 ",
    ]
)
texts = st.lists(parts, max_size=12).map("".join) | st.text(max_size=2000)


ODD: list[Any] = [
    *("550 a\nb", "250 ok\r\n", "550-", "250-a\r\n250-b", "", "ok", "999 no", "354 go on"),
    *("250 a\r\n550 b", "250 gr\u00fc\u00df\ud800", "250 " + "x" * 2000, "250\0", "\r\n250 ok"),
    *(b"250 ok", b"\xff", None, 250, [], ["250 ok"], object(), MISSING),
]
"""Texts that handlers have returned, or might return."""


async def everything(client: Client) -> bytes:
    client.writer.write_eof()
    return await client.reader.read()
