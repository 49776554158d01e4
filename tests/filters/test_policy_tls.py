"""The attributes of a policy request about TLS and a client certificate."""

from __future__ import annotations

import hashlib
import ssl
import subprocess
from typing import TYPE_CHECKING

from support.client import Client
from support.handlers import Collect
from support.peers import peer
from support.policy import TestPolicy, recipient
from support.scripted_server import listening
from support.server import serve

from smtpd_fork.filters import Policy

if TYPE_CHECKING:
    from pathlib import Path

    from support.authority import Authority


def pubkey_digest(cert: Path) -> str:
    """Return the fingerprint of a certificate's key, by the command of Postfix's manual."""
    openssl = peer("openssl")
    command = [openssl, "x509", "-in", str(cert), "-noout", "-pubkey"]
    pem = subprocess.run(command, check=True, capture_output=True).stdout
    der = subprocess.run(
        [openssl, "pkey", "-pubin", "-outform", "DER"], input=pem, check=True, capture_output=True
    ).stdout
    return hashlib.sha256(der).digest().hex(":").upper()


async def test_tls_and_a_client_certificate_are_described_as_by_postfix(
    authority: Authority,
) -> None:
    issued = authority.issue("server", "localhost", "127.0.0.1")
    shown = authority.issue("client", "client.example", common_name="relay two+")
    expected = pubkey_digest(shown.cert)
    context = ssl.create_default_context(cafile=str(authority.ca))
    context.load_cert_chain(shown.cert, shown.key)
    options = {
        "tls_cert": str(issued.cert),
        "tls_key": str(issued.key),
        "tls_client_ca": str(authority.ca),
    }
    policy = TestPolicy()
    async with (
        listening(policy),
        serve([Policy(policy.address), Collect()], **options) as server,
    ):
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            await recipient(client)
            await client.say("RSET")
            await client.start_tls(context)
            await client.say("EHLO x")
            await recipient(client)
    plain, encrypted = policy.requests
    assert plain["encryption_protocol"] == plain["ccert_subject"] == ""
    der = ssl.PEM_cert_to_DER_cert(shown.cert.read_text())
    assert encrypted["encryption_protocol"] in {"TLSv1.2", "TLSv1.3"}
    assert encrypted["encryption_cipher"]
    assert int(encrypted["encryption_keysize"]) >= 128
    assert encrypted["ccert_subject"] == "relay+20two+2B"
    assert encrypted["ccert_issuer"].startswith("trustme+20v")  # the certificate has no common name
    assert encrypted["ccert_fingerprint"] == hashlib.sha256(der).digest().hex(":").upper()
    assert encrypted["ccert_pubkey_fingerprint"] == expected
    assert encrypted["instance"] != plain["instance"]
