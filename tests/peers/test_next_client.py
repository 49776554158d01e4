"""Why a connection to a milter does not serve the next client (SMFIC_QUIT_NC)."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING

import pytest
from support.ports import free_ports

from peers.milters import HAM, folder_of_all, opendkim, through
from smtpd_fork.hops.milter.codec import frame
from smtpd_fork.hops.milter.edited import Parts
from smtpd_fork.hops.milter.options import offer
from smtpd_fork.message import fields

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.peers

QUIT_NC, UNKNOWN = frame(b"K"), frame(b"U", b"NOOP\0")
CLIENT = frame(b"C", b"[127.0.0.1]\x004\x00\x19127.0.0.1\0")
SILENCE = 1.0


@pytest.fixture
def folder() -> Iterator[Path]:
    with folder_of_all() as made:
        yield made


async def answers(reader: asyncio.StreamReader, last: bytes = b"ac") -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    while not found or found[-1][0] not in {bytes([each]) for each in last}:
        (length,) = struct.unpack(">I", await reader.readexactly(4))
        content = await reader.readexactly(length)
        found.append((content[:1], content[1:]))
    return found


async def signed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Let OpenDKIM sign a message after a client that it knows; return the message."""
    parts = Parts(HAM.encode())
    found: list[tuple[bytes, bytes]] = []
    events = [frame(b"M", b"<bob@example.com>\0"), frame(b"R", b"<c@example.org>\0")]
    for name, value in parts.names_and_values:
        events.append(frame(b"L", b"%b\0%b\0" % (name, value.replace(b"\r\n", b"\n"))))
    events += [frame(b"N"), frame(b"B", HAM.encode()[parts.body :]), frame(b"E")]
    for event in events:
        writer.write(event)
        found = await answers(reader)
    assert found[-1] == (b"a", b"")
    _, _, rest = found[0][1][4:].partition(b"\0")
    value = rest.rstrip(b"\0").replace(b"\n", b"\r\n")
    return b"DKIM-Signature:" + value + b"\r\n" + HAM.encode()


async def test_libmilter_ignores_quit_nc_after_accept_and_opendkim_then_signs_wrongly(
    folder: Path,
) -> None:
    signer, verifier = (f"127.0.0.1:{port}" for port in free_ports(2))
    with opendkim(folder, "s", signer), opendkim(folder, "v", verifier):
        reader, writer = await asyncio.open_connection(*signer.split(":"))
        writer.write(offer())
        await answers(reader, b"O")
        writer.write(CLIENT)
        assert await answers(reader) == [(b"c", b"")]
        first = await signed(reader, writer)

        writer.write(QUIT_NC + CLIENT)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(answers(reader), SILENCE)

        writer.write(UNKNOWN + QUIT_NC + CLIENT)
        assert await answers(reader) == [(b"c", b"")]
        assert await answers(reader) == [(b"c", b"")]
        second = await signed(reader, writer)
        writer.close()
        _, stored = await through([verifier], first, second)
    results = [
        b"dkim=pass" in each.value
        for message in stored
        for each in fields(message)
        if each.name == b"Authentication-Results"
    ]
    assert results == [True, False]
