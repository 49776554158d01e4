"""SPF, DKIM and DMARC with OpenDKIM and OpenDMARC, and a DNS server of the test."""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from support.handlers import Collect
from support.nameserver import name_server
from support.peers import cannot, needs_root, peers
from support.ports import free_ports
from support.server import serve

from peers.milters import HAM, folder_of_all, opendkim, opendmarc, send
from smtpd_fork.filters import Milter
from smtpd_fork.message import fields

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.peers, pytest.mark.timeout(240)]

RESOLVER = f"127.0.77.{1 + os.getpid() % 250}"
"""The programs query port 53 and read resolv.conf. Concurrent tests have one address each."""

FORGED = "Authentication-Results: mx.example.com; dkim=pass header.d=example.com\r\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    with folder_of_all() as made:
        yield made


@dataclass
class Judges:
    """A server whose milters verify signatures and apply DMARC.

    :ivar good: a message that example.com has signed
    """

    port: int
    good: bytes
    kept: Collect

    async def judge(self, message: bytes) -> tuple[int, str, list[bytes]]:
        """Return the reply to a message, and its results if it was accepted."""
        self.kept.envelopes.clear()
        [(code, text)] = await send(self.port, message)
        taken = self.kept.messages[0] if self.kept.messages else b""
        named = [each for each in fields(taken) if each.name == b"Authentication-Results"]
        return code, text, [each.value for each in named]


@asynccontextmanager
async def judges(folder: Path) -> AsyncIterator[Judges]:
    (folder / "ignored").write_text("192.0.2.1\n")
    (folder / "unbound.conf").write_text(
        'server:\n do-not-query-localhost: no\n module-config: "iterator"\n'
        f'forward-zone:\n name: "."\n forward-addr: {RESOLVER}@53\n'
    )
    signer, verifier, dmarc = (f"127.0.0.1:{port}" for port in free_ports(3))
    asks = f"ResolverConfiguration {folder}/unbound.conf"
    judge = f"IgnoreHosts {folder}/ignored\nTrustedAuthservIDs mx.example.com\n"
    kept, signed = Collect(), Collect()
    async with name_server(RESOLVER, 53) as dns:
        with (
            opendkim(folder, "s", signer),
            opendkim(folder, "v", verifier, asks),
            opendmarc(folder, dmarc, judge, RESOLVER),
        ):
            _, _, key = (folder / "keys").read_text().partition(" ")
            dns.records = {
                ("k._domainkey.example.com", "TXT"): f'"{key.replace(" ", "").strip()}"',
                ("_dmarc.example.com", "TXT"): '"v=DMARC1;p=reject"',
                ("example.com", "A"): "192.0.2.1",
                ("example.net", "A"): "192.0.2.1",
            }
            async with (
                serve([Milter(signer), signed]) as ours,
                serve([Milter(verifier), Milter(dmarc), kept]) as mx,
            ):
                await send(ours.port, HAM)
                yield Judges(mx.port, signed.messages[0], kept)


async def test_dmarc_accepts_signed_messages_and_refuses_forged_ones(
    folder: Path,
) -> None:
    needs_root()
    unshare, _ = peers("unshare", "mount")
    if subprocess.run([unshare, "--mount", "true"], check=False, capture_output=True).returncode:
        cannot("no mount namespace may be made")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((RESOLVER, 53))
        except OSError:
            cannot(f"the port 53 of {RESOLVER} is in use")
    async with judges(folder) as mx:
        code, _, results = await mx.judge(mx.good)
        assert code == 250
        assert any(b"dkim=pass" in each for each in results), results
        assert any(b"dmarc=pass" in each for each in results), results

        refused: tuple[int, str, list[bytes]] = (
            550,
            "5.7.1 rejected by DMARC policy for example.com",
            [],
        )
        changed = mx.good.replace(b"hello", b"jello")
        assert await mx.judge(changed) == refused
        assert await mx.judge(HAM.encode()) == refused
        assert await mx.judge((FORGED + HAM).encode()) == refused

        other = HAM.replace("From: bob@example.com", "From: bob@example.net")
        code, _, results = await mx.judge(other.encode())
        assert code == 250
        assert any(b"dmarc=none" in each for each in results), results
